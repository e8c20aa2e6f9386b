"""The ``synth`` command, a module per family of verbs."""
