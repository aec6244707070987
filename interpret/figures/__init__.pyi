from .lenses import lens_figure as lens_figure
from .locations import location_figure as location_figure
from .locations import location_lines as location_lines
from .traces import average_figure as average_figure
from .traces import heads_figure as heads_figure
from .traces import knockout_figure as knockout_figure
from .traces import line_figure as line_figure
from .traces import severed_figure as severed_figure
