"""Fine-tuning methods: LoRA, AdaLoRA, prefix and prompt tuning, adapters, freezing; their adapters on disk and in PEFT's format."""
