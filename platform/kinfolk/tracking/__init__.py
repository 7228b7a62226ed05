"""Runs, registry and promotion: the only importer of MLflow, and only on first use."""
