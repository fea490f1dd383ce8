"""Shrink the config of a cluster: its layout, its model, its samples and its settings."""
