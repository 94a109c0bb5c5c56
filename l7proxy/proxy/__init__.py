"""From a model to a live snapshot, and from a request to its response."""
