"""The configuration of a network, from a model folder and back."""
