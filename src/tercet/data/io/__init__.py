"""Files: written whole or not at all, read by offset, tables, images."""
