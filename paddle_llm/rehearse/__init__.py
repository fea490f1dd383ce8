"""Is it right: every layout against one process, on CPU ranks. Importing this room imports no paddle."""
