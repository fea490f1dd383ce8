"""What this project understands of other people's folders: the command `paddle-llm check-model`."""
