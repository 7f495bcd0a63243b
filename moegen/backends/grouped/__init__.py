"""How grouped products are written: a file per kernel, and the table that holds them."""
