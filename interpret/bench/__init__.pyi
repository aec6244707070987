from .experiment import Experiment as Experiment
from .hypothesis import HypothesisTest as HypothesisTest
from .hypothesis import hypothesis_test as hypothesis_test
from .log import LoggedRun as LoggedRun
from .profiling import Profiled as Profiled
from .profiling import profile as profile
