"""Kinfolk: choose, train, compare, register and serve families of generative models."""
