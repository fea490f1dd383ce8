"""Evaluation of models on files: perplexity, scores of generated answers, and their table. Importing it does not import Paddle."""
