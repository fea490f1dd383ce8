"""Print flags that make a failed job continue: `restart_flags.py STARTED [CONFIG.json] [--key value ...]`, one word per line.

STARTED is the time of the job's first start, in seconds since 1970.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.training.launch.restart import restart_flags

if __name__ == "__main__":
    for word in restart_flags(float(sys.argv[1]), sys.argv[2:]):  # an empty line would be an argument for the shell
        print(word)
