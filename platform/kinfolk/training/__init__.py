"""One training loop for every family, and its launch on Ray Train."""
