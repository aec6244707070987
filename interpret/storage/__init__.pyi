from .joining import join_runs as join_runs
from .run_folder import Run as Run
from .run_folder import RunFolder as RunFolder
from .run_folder import open_run as open_run
from .run_folder import read_manifest as read_manifest
from .run_folder import read_run as read_run
from .run_folder import read_table as read_table
from .run_folder import read_units as read_units
