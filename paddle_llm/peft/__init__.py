"""Fine-tuning methods, and their adapters on disk in this library's format and PEFT's."""
