from .files import copy_examples as copy_examples
from .files import example as example
