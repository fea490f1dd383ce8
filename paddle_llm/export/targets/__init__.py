"""The formats of an export."""
