"""Text generation: decoding, prompts, chat, scores, and the machinery of `paddle-llm generate`.

Importing this package does not import Paddle.
"""
