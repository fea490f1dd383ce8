"""The Trainer subclasses."""
