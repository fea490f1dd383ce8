"""GPTQ's layout of quantized linear layers in safetensors."""
