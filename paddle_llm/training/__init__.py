"""The Trainer subclasses and their callbacks: the one place where the other rooms meet."""
