"""The model that is exported: found, opened and read one tensor at a time."""
