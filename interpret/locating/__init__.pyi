from .facts import locate_facts as locate_facts
from .runs import run as run
from .show import Locations as Locations
from .show import located_fact_figure as located_fact_figure
from .tables import LocationGrid as LocationGrid
from .tables import location_averages as location_averages
from .tables import location_grids as location_grids
from .tables import location_summary as location_summary
