"""The deletion of a source row and of everything made from it."""
