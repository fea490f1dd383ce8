"""Read flags and config files into raw values."""
