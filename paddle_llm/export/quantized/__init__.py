"""`quantize`: writes a model with quantized linear layers as a folder of Hugging Face."""
