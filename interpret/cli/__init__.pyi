from .command_line import main as main
from .commands import COMMANDS as COMMANDS
from .commands import PROBES as PROBES
from .commands import make_app as make_app
