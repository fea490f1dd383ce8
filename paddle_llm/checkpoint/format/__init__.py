"""The files of a checkpoint: safetensors, an index of tensors and a manifest. Documented in docs/reference/checkpoint_format.md."""
