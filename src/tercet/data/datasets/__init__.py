"""Decoding and augmentation: rows as images."""
