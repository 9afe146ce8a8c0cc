"""Which triplets, from labels and relevance."""
