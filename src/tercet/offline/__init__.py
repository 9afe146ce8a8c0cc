"""Jobs over a whole collection: its embeddings on disk, made once and known by what they were made of."""
