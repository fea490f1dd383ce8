"""Names of fields that other programs and earlier versions used, and their translation."""
