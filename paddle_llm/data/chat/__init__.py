"""Chat templates: found in folders, rendered, and turned into token ids with the spans that are trained."""
