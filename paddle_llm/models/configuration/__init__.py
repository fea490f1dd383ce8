"""The configuration of a network: read from a model folder and written to one."""
