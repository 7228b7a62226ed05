"""Verbs that wire families to the platform, and the command line."""
