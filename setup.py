"""Metadata sits in pyproject.toml; here is what needs code: the module `fused_ln` of custom_ops/ and its kernels."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "custom_ops"))
from installation import options

setup(packages=[*find_packages(include=["paddle_llm*"]), "fused_ln"], **options("custom_ops"))
