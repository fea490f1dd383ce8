"""Simulation of a whole job: noise and slow ranks, failures, checkpoints, and drawings of a step. Does not import Paddle."""
