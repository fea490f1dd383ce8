"""Start the processes of a job: `paddle.distributed.launch` with restarts, signals and readable output.

Nothing here imports Paddle: the processes that are started do.
"""
