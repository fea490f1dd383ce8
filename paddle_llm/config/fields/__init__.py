"""The fields of a RunConfig by theme, one file per theme. A field is declared once, here: type, range, default and help."""
