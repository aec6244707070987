from .chat import ChatText as ChatText
from .chat import chat_text as chat_text
from .prompts import Prompt as Prompt
from .prompts import load_examples as load_examples
from .tokens import TokenisedPrompt as TokenisedPrompt
