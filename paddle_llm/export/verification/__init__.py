"""Comparison of an export with its source."""
