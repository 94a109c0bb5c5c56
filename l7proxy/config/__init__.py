"""The configuration model and where it comes from."""
