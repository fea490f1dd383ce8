"""Chat templates: render conversations as text with the positions of answers, built-in formats and Jinja."""
