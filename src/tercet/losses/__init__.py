"""Loss heads: modules of one shape, `head(embeddings, labels, mined, ref=…) -> scalar`."""
