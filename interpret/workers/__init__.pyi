from .jobs import Analysis as Analysis
from .jobs import Executor as Executor
from .jobs import Finished as Finished
from .jobs import Job as Job
from .jobs import Settled as Settled
from .jobs import Task as Task
from .runs import run_job as run_job
from .settings import Workers as Workers
