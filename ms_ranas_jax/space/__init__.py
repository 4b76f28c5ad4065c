"""What a network is: operations, cells, the grid of cells, its cost rows."""
