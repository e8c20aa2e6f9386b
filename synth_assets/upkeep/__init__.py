"""Looking after a home: verifying, clearing up, making a release again."""
