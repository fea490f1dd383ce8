"""The target `gguf`: one file with weights, tokenizer and chat template, for llama.cpp and the programs built on it."""
