"""What it reads: tokenizers, .bin/.idx corpora, samplers, collators."""
