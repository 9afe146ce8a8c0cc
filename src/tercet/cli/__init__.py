"""The console script `tercet`, one file a command."""
