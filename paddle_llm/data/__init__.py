"""Tokenizers, corpora, instruction data, samplers and data loaders."""
