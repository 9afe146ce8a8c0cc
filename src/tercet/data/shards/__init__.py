"""Tar shards: written, indexed, read at random."""
