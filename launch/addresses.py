"""Addresses for a job on many machines: `addresses.py HOST:PORT` prints the master's IP:PORT and this machine's own IP.

The launcher starts its meeting point on the machine whose own IP *equals* the master's as text: a host name is never
equal, nor is 127.0.1.1, which Debian gives a machine's name. So names are resolved here (for five minutes: a pod's name
may take a while to appear), and the own address is the one from which the master is reached.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.gloo.interface import address_towards


def resolve(host: str, patience: float = 300.0) -> str:
    """The host's IPv4 address.

    Raises:
        OSError: it has none after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.gethostbyname(host)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


if __name__ == "__main__":
    name, _, port = sys.argv[1].rpartition(":")
    if not name or not port.isdigit():
        sys.exit(f"error: MASTER is {sys.argv[1]!r}: it is HOST:PORT of the first machine.")
    try:
        master = resolve(name)
        own = address_towards(master)
    except OSError as error:
        sys.exit(f"error: MASTER: {name} has no address: {error.strerror}.")
    except UserError as error:
        sys.exit(f"error: MASTER: {error}")
    print(f"{master}:{port}", own)
