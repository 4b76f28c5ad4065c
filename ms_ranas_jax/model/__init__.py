"""A trained network as a folder: written, read, and asked for answers."""
