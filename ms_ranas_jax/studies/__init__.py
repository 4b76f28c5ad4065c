"""The figures of the paper: what is run for them, and what comes out."""
