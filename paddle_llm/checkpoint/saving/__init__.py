"""Write a checkpoint from all ranks, in the ranks themselves or in processes beside them. Nothing here imports Paddle."""
