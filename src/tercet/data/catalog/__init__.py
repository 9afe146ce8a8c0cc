"""Which images there are: folders and tables as a `Catalog`, and its split."""
