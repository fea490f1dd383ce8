"""The rules between fields, checked before paddle is imported. One small function each; RULES in rules/all.py lists them."""
