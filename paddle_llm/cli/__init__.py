"""The `paddle-llm` command: one module per command group, imported on use."""
