"""What is trained: the whole network, LoRA, prefixes, adapters, some of its parts; saved, switched and merged."""
