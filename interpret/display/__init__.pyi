from .heatmaps import Band as Band
from .heatmaps import Heading as Heading
from .heatmaps import Heatmap as Heatmap
from .heatmaps import Panel as Panel
from .heatmaps import SentencePiece as SentencePiece
from .shown import Rows as Rows
from .shown import Shown as Shown
from .view import View as View
