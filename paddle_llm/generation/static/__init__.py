"""The program of a static export in paddle.inference."""
