"""Weight-only quantization of linear layers: rounding to a grid, GPTQ, and running a network layer by layer."""
