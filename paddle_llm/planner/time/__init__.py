"""Step time of a training: kernels by a roofline, collectives by link, pipelines by events. Does not import Paddle."""
