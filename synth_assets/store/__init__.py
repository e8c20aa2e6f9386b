"""Content-addressed tables: a version is a hash, a file is written once."""
