"""What a figure of one result is drawn with: panels, grids of cells, colours and styles of matplotlib."""
