"""Figures: retrieval, ranking of triplets, what mining did."""
