from ._preservation import accuracy as accuracy
from ._preservation import answers as answers
from ._preservation import preservation as preservation
from .training import RewardStep as RewardStep
from .training import read_answer as read_answer
from .training import reinforcement_control as reinforcement_control
from .training import supervised_control as supervised_control
from .training import word_scorer as word_scorer
