"""Basics that every other package may import. Imports neither Paddle nor PaddleNLP."""
