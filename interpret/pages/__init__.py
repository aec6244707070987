"""HTML pages, each in one file that loads nothing."""
