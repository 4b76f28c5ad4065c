"""How an anytime network is judged: evaluation, budgets, curves."""
