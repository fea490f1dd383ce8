"""Tokenizer folders: which library reads one, loading through transformers, saving, and text kept apart from special tokens."""
