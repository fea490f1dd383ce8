"""Processes of a job: which process ends when another one has ended."""
