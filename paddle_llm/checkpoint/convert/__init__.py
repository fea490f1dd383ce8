"""Conversion of checkpoints between PaddleNLP's formats, this library's and a model folder, one tensor at a time."""
