"""Addresses of a job on several machines, in the form that Paddle's launcher compares.

Paddle 3.3.1 starts its store on the machine whose address equals the master's as text. A host name is never equal to an
address, and neither is 127.0.1.1, which Debian gives a machine's name.
"""

from __future__ import annotations

import socket
import time

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.parallel.gloo.interface import address_towards

_PATIENCE_SECONDS = 300.0  # the name of a new pod may take a while to appear


def launcher_addresses(master: str, patience: float = _PATIENCE_SECONDS) -> tuple[str, str]:
    """Return the master's IP:PORT and this machine's address on the route to it.

    Args:
        master: HOST:PORT of the first machine.
        patience: Seconds to wait until the host has an address.

    Raises:
        UserError: If the text has another form, the host has no address, or there is no route to it.
    """
    host, _, port = master.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"--master {master} is not HOST:PORT. Give HOST:PORT of the first machine; the port (1 to 65535) must be free there."
        )
    try:
        address = _resolve(host, patience)
    except OSError as error:
        raise UserError(f"--master {master}: {host} has no address: {error.strerror}. Check the name.") from None
    return f"{address}:{port}", address_towards(address)


def is_own_address(address: str, own: str) -> bool:
    """Return whether an address is one of this machine.

    Args:
        address: Address of the master.
        own: This machine's address on the route to it.
    """
    return address == own or address.startswith("127.")


def _resolve(host: str, patience: float) -> str:
    deadline, reported = time.monotonic() + patience, False
    while True:
        try:
            return socket.gethostbyname(host)
        except OSError:
            if time.monotonic() > deadline:
                raise
            if not reported:
                say(f"{host} has no address yet: waiting up to {patience:.0f} s for it.")
                reported = True
            time.sleep(2)
