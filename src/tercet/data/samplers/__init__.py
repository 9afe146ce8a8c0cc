"""Which rows form a batch."""
