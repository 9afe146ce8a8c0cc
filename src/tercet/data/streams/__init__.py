"""P×K batches from tar shards that are read from front to back."""
