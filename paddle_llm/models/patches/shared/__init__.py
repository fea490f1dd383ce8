"""Corrections that several families share, and the tools that the families' files are built of."""
