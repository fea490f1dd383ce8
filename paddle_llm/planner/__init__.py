"""FLOPs, peaks of devices, shapes of the weights of a rank, step time, and simulation of jobs. Does not import Paddle."""
