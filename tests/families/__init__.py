"""Tests of the descriptions of model families."""
