"""Questions about what was made: of one row, or in SQL; and telling lineage to catalogs."""
