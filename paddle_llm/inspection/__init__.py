"""Reports on how model, tokenizer and adapter folders are read: the command `paddle-llm check-model`."""
