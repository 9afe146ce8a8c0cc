"""Pictures of what came of it."""
