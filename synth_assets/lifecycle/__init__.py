"""The pure middle: polars in, polars out. No dagster, no model client, no files."""
