"""Which network interface gloo listens on, where this machine's own name does not lead to it.

Paddle 3.3.1 resolves `gethostname()` and listens on the address that it gets. A name without an address ends the job
("network NAME: cannot be obtained"), and 127.0.1.1, which Debian gives a machine's name, cannot be reached from another
machine. `GLOO_SOCKET_IFNAME` replaces that choice.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct

from paddle_llm.config.console import say
from paddle_llm.config.errors import UserError

INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # linux/sockios.h


def choose_interface(own_host: str) -> None:
    """Set `GLOO_SOCKET_IFNAME` where this machine's name leads elsewhere than to the address that the launcher uses.

    A value of the user is kept. Reports what was set.

    Args:
        own_host: host part of this rank's endpoint, an address or a name.

    Raises:
        UserError: If the endpoint's address is another machine's; if the name of this machine has no address, and no interface has that of the endpoint; if the user's
            interface does not exist.
    """
    chosen = os.environ.get(INTERFACE)
    if chosen:
        if chosen not in _interfaces():
            raise UserError(
                f"{INTERFACE} = {chosen} is not a network interface of this machine. Use {' or '.join(_interfaces())}, or unset it."
            )
        return
    name = socket.gethostname()
    named, wanted = _addresses_of(name), _addresses_of(own_host)
    if wanted and not any(map(_is_here, wanted)):
        raise UserError(
            f"The address that the launcher uses for this rank is not an address of this machine: {min(wanted)}. Correct the line "
            f"of {name} in /etc/hosts, or give the launcher --host ADDRESS (one machine: --host 127.0.0.1)."
        )
    if named and (named & wanted or not _only_loopback(named) or _only_loopback(wanted)):
        return
    found = next((interface for interface in _interfaces() if _address_of(interface) in wanted), None)
    if found is not None:
        os.environ[INTERFACE] = found
        where = f"resolves to {min(named)}" if named else "cannot be resolved"
        say(f"The name of this machine {where}: {name}. Ranks are connected through the network interface {found}.")
        return
    if not named:
        raise UserError(
            f"The name of this machine cannot be resolved: {name}. Add the line '127.0.0.1 {name}' to /etc/hosts "
            f"(several machines: its address in the network), or set {INTERFACE} to a network interface."
        )


def _addresses_of(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()


def _is_here(address: str) -> bool:
    """Whether an address belongs to an interface of this machine: no other one can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _only_loopback(addresses: set[str]) -> bool:
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _address_of(interface: str) -> str:
    """The IPv4 address of an interface; "" where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return ""
