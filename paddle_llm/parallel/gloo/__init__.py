"""The gloo backend for CPU ranks."""
