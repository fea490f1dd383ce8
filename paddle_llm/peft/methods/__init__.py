"""The fine-tuning methods."""
