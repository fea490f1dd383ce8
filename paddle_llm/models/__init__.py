"""Which network: one registry, building and loading models, the one mapping of names to Hugging Face."""
