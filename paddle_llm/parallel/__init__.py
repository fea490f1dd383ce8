"""Where it runs: the host, the gloo backend for CPU ranks, gathering sharded tensors by name."""
