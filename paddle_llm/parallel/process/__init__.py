"""The process of a rank: its environment, its start, its exit code, and the failure of other processes."""
