"""Adapters in the format of Hugging Face's PEFT."""
