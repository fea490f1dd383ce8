"""Conversion of tokenizers to tokenizer.json for exports, with a check of the ids."""
