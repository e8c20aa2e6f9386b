"""Dagster's edge: one thin module per lane of a dataset's graph, wiring only."""
