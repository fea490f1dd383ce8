"""Evaluate a network during training."""
