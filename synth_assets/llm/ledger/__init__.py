"""The ledger: what was asked and paid for, in SQLite or PostgreSQL, and what is done with it."""
