"""The `paddle-llm` command: one thin module per command group, imported on use."""
