"""Releases in the file formats that training tools read. One module per family of formats."""
