"""Check a job and start its processes: `paddle.distributed.launch` with restarts, signals and readable output.

Nothing here imports Paddle: the processes that are started do.
"""
