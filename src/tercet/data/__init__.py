"""Rows of a catalog: what images there are, which of them meet, and how they are read."""
