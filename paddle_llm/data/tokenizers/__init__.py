"""Tokenizer folders: choice of the library, loading, saving, conversion, and codecs that separate text from special tokens."""
