"""Compare an export with its source."""
