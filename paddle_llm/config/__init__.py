"""Configuration: one typed RunConfig from a JSON file and flags. Does not import Paddle."""
