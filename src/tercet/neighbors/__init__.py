"""Exact search: propose by rank keys, decide by differences."""
