"""Fields of RunConfig, one file per topic. Each field is declared once: type, range, default and help text."""
