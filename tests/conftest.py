"""What every test has: quiet libraries, and an environment that does not change under it."""

from __future__ import annotations

import os

from paddle_llm.parallel.process.environment import mkl_cpu_type, processor

# Read when paddle is imported, by this process and by the ranks that tests start.
os.environ.setdefault("GLOG_minloglevel", "2")
if kind := mkl_cpu_type(processor()):
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", kind)
