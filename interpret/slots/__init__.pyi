from .decoding import Primed as Primed
from .decoding import Start as Start
from .decoding import prime as prime
from .decoding import start_inserted as start_inserted
from .next_token import next_logits as next_logits
from .slot_prompt import SlotPrompt as SlotPrompt
from .whole_passes import WholePrimed as WholePrimed
from .whole_passes import WholeStart as WholeStart
