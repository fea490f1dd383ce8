"""The server of `paddle-llm serve`: an engine that batches texts continuously, and its HTTP interface."""
