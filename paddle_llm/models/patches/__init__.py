"""Corrections and additions to PaddleNLP's networks."""
