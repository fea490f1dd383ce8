"""Processes of a job, the gloo backend for CPU ranks, sharding stages 2 and 3, and fixes of paddle.distributed."""
