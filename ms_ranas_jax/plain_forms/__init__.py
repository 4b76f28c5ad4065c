"""Trained networks of each family as plain layers, for exports."""
