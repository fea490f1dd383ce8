"""Training state on disk: atomic checkpoints, exact resume, merged model folders, and the resolver of folders."""
