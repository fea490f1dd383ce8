"""Pretraining corpora: text files are tokenized to .bin/.idx files, which are then read as samples."""
