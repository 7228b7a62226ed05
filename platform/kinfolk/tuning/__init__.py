"""Sweeps: what is searched, how trials are judged, what is remembered of them, and how Ray Tune runs them."""
