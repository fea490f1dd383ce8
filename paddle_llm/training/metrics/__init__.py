"""Measure, collect and report the metrics of a run."""
