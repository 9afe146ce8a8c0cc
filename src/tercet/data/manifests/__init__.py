"""Triplets and pairs on disk, with their catalog and what they were made of."""
