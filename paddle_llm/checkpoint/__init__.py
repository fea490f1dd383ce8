"""What survives: atomic checkpoints, exact resume, merged model folders."""
