"""Sharding stages 2 and 3 on top of fleet's stage 1. `training/sharding.py` applies them in order."""
