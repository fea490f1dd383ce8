"""Scripts that `paddle.distributed.launch` runs on every rank."""
