"""Datasets: one folder each, with ``defs.yaml`` and a prompt."""
