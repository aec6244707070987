from .frame import page_pieces as page_pieces
from .interpretations import interpretation_page as interpretation_page
from .provenance import leaves as leaves
from .provenance import model_name as model_name
