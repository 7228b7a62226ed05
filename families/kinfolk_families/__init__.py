"""Families of generative models, one room each."""
