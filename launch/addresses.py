"""Print the addresses of a job on several machines: `addresses.py HOST:PORT` prints the master's IP:PORT and the own IP."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.core.errors import exit_on_user_error
from paddle_llm.training.launch.addresses import launcher_addresses

if __name__ == "__main__":
    with exit_on_user_error():
        print(*launcher_addresses(sys.argv[1]))
