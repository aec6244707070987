from .demo import DemoSource as DemoSource
from .demo import demo_model_folder as demo_model_folder
from .opening import Opening as Opening
from .opening import load as load
from .opening import model_circumstances as model_circumstances
from .opening import model_identity as model_identity
