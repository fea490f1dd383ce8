"""Compare every layout with one process on CPU ranks. Importing this package does not import Paddle."""
