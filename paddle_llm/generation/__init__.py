"""What generates: decoding, its scores, and `paddle-llm generate`. Importing it imports no paddle."""
