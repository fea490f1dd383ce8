"""The model that is exported: located, opened and read one tensor at a time."""
