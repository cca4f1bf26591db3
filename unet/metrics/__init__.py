"""Arrays -> scores."""
