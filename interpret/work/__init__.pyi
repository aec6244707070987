from .extensions import Extension as Extension
from .extensions import load_extensions as load_extensions
from .loop import Work as Work
from .loop import fill_folder as fill_folder
