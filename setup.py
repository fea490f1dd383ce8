"""Metadata sits in pyproject.toml; this file serves `python setup.py ...` of older habits."""

from setuptools import setup

setup()
