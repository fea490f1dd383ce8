"""Tokenizer folders: which library reads one, loading, saving, conversion, and codecs that keep text apart from special tokens."""
