"""Pages that open anywhere: one HTML file each, made from stored records alone, with no model and no network."""

from interpret.report.interpretations import interpretation_page

__all__ = ["interpretation_page"]
