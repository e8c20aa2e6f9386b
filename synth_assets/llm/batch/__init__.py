"""Batch mode: the same requests for half the price, answered within hours."""
