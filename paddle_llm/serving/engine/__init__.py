"""The engine: continuous batching of texts in a static program, in a separate process."""
