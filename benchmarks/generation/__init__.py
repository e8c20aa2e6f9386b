"""Generation clients side by side: see ``__main__``."""
