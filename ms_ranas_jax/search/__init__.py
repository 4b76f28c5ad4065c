"""How a cell is found: alphas, the bilevel step, the loop."""
