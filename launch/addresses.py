"""Addresses for a job on several machines: `addresses.py HOST:PORT` prints IP:PORT of the master and the IP of this machine.

The launcher starts its rendezvous server on the machine whose IP is the same text as the IP of the master. A host name is never
the same text, and neither is 127.0.1.1, to which Debian resolves the name of the machine. This script therefore resolves the
name, for up to five minutes because the name of a pod may appear late, and prints the address from which this machine reaches
the master.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.gloo.interface import address_towards


def resolve(host: str, timeout: float = 300.0) -> str:
    """Return the IPv4 address of a host.

    Raises:
        OSError: If the host has no address after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
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
        sys.exit(f"error: MASTER={sys.argv[1]} is not HOST:PORT. Give HOST:PORT of the first machine.")
    try:
        master = resolve(name)
        own = address_towards(master)
    except OSError as error:
        sys.exit(
            f"error: MASTER: {name} has no IPv4 address: {error.strerror}. Check the name, or give the IP address."
        )
    except UserError as error:
        sys.exit(f"error: MASTER: {error}")
    print(f"{master}:{port}", own)
