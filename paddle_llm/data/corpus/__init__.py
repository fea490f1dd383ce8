"""Pretraining corpora: from text files to .bin/.idx files to samples."""
