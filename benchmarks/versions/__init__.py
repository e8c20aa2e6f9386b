"""What versions cost: hashing tables, verifying a store, looking at a ledger, a run of nothing."""
