from .demo import DemoSource as DemoSource
from .demo import demo_model_folder as demo_model_folder
from .identity import model_circumstances as model_circumstances
from .identity import model_identity as model_identity
from .opening import Opening as Opening
from .opening import load as load
