from ._record import SITES as SITES
from ._record import Site as Site
from ._record import record as record
from .cache import ActivationCache as ActivationCache
from .cache import activation_cache as activation_cache
