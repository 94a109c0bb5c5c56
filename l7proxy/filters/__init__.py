"""Policies, one file each: a frozen struct that is its own YAML schema, and `wrap` that is its behaviour."""
