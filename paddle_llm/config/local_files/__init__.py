"""Find models, data, templates and adapters on this machine by the names of their files."""
