"""What every test has: quiet libraries, and an environment that does not change under it."""

from __future__ import annotations

import os

# Read when paddle is imported, by this process and by the ranks that tests start.
os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
