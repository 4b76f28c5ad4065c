"""What is trained, in files that other runtimes read."""
