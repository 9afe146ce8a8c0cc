"""Loss heads, a family a file."""
