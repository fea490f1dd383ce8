"""Find models, data, chat templates and adapters on this machine by the names of their files."""
