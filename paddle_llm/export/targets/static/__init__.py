"""The static program for paddle.inference."""
