"""The gloo backend for CPU ranks: what Paddle 3.3.1 lacks for fleet to run there."""
