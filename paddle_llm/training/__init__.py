"""Training jobs: data and trainer assembly, Trainer subclasses, callbacks, metrics and evaluation."""
