"""Selection rules: which triplets and pairs of a batch to learn from."""
