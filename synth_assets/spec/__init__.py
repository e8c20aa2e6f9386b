"""What users write: the typed spec, its prompt, where mistakes are, and its fingerprints."""
