"""FLOPs of a model and peak FLOP/s of devices. Does not import Paddle."""
