from .frame import page_pieces as page_pieces
from .interpretations import interpretation_page as interpretation_page
