from .functions import StepReading as StepReading
from .functions import list_step_functions as list_step_functions
from .functions import register_step_function as register_step_function
from .step import Foil as Foil
from .step import Room as Room
from .step import Step as Step
