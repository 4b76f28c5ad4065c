"""What a network costs, from its cost rows: exact, expected, at most."""
