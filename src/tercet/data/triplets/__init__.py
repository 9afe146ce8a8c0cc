"""Which triplets and pairs: drawn from labels, or from relevance."""
