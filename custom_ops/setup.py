"""Installs only `fused_ln`, for the Paddle of this environment: `python setup.py install`, as in older tutorials."""

import os
import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
os.chdir(HERE)
sys.path.insert(0, str(HERE))
from installation import options  # noqa: E402

setup(name="paddle_llm_fused_ln", version="0.3.0", packages=["fused_ln"], zip_safe=False, **options("."))
