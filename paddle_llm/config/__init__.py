"""What was asked for: one typed RunConfig from JSON and flags. Imports no paddle."""
