"""Choose the address at which other ranks reach this one, and the network interface of gloo.

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
import sys

from paddle_llm.core.errors import UserError

INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # linux/sockios.h


def own_host() -> str:
    """Return the address, or on one machine the name, at which other ranks reach this one.

    With several machines it is the address of the user's interface, else the one from which the master is reached. The
    launcher resolves the machine's name, which may give a loopback address or one of another network.
    """
    master = _master_on_another_machine()
    if master is None:
        return _host(os.environ.get("PADDLE_CURRENT_ENDPOINT", "")) or "127.0.0.1"
    return _address_of(os.environ.get(INTERFACE, "")) or address_towards(master)


def address_towards(host: str) -> str:
    """Return this machine's address on the route to `host`; nothing is sent.

    Raises:
        UserError: If there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise UserError(
                f"The first machine of the job cannot be reached: {host}: {error.strerror}. Check the network or the "
                "launcher's --master."
            ) from None
        return str(probe.getsockname()[0])


def choose_interface() -> None:
    """Set `GLOO_SOCKET_IFNAME` if gloo's own choice would differ from `own_host`; a value of the user is kept.

    The first rank of each machine reports the interface that was set.

    Raises:
        UserError: If the user's interface does not exist, the launcher's address belongs to another machine, or no
            interface has the address.
    """
    chosen = os.environ.get(INTERFACE)
    if chosen:
        if chosen not in _interfaces():
            raise UserError(
                f"{INTERFACE} = {chosen} is not a network interface of this machine. Use {' or '.join(_interfaces())}, or unset the variable."
            )
        return
    name, host = socket.gethostname(), own_host()
    named, wanted = _addresses_of(name), _addresses_of(host)
    if wanted and not any(map(_is_here, wanted)):
        raise UserError(
            f"The address that the launcher uses for this rank is not an address of this machine: {min(wanted)}. Correct the line "
            f"of {name} in /etc/hosts, or give the launcher --host ADDRESS (one machine: --host 127.0.0.1)."
        )
    several = _master_on_another_machine() is not None
    if (
        not several
        and any(map(_is_here, named))
        and (named & wanted or not _only_loopback(named) or _only_loopback(wanted))
    ):
        return
    found = next((interface for interface in _interfaces() if _address_of(interface) in wanted), None)
    if found is not None:
        os.environ[INTERFACE] = found
        where = f"resolves to {min(named)}" if named else "cannot be resolved"
        why = (
            f"the route to {_master_on_another_machine()}" if several else f"the name of this machine, {name}, {where}"
        )
        _report(f"Ranks are connected through the network interface {found}, address {_address_of(found)}: {why}.")
    elif not named:
        raise UserError(
            f"The name of this machine cannot be resolved: {name}. Add the line '127.0.0.1 {name}' to /etc/hosts "
            f"(several machines: its address in the network), or set {INTERFACE} to a network interface."
        )


def _master_on_another_machine() -> str | None:
    """Return the master's address in a job on several machines; None on one machine.

    A loopback address cannot be reached from another machine: then all nodes of the launcher are on this machine.
    """
    master = _host(os.environ.get("PADDLE_MASTER", ""))
    if int(os.environ.get("PADDLE_NNODES", "1")) < 2 or not master:
        return None
    addresses = _addresses_of(master)
    return None if addresses and _only_loopback(addresses) else master


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]


def _report(line: str) -> None:
    """Print a line on the first rank of each machine: machines differ in their interfaces."""
    if os.environ.get("PADDLE_RANK_IN_NODE", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _addresses_of(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()


def _is_here(address: str) -> bool:
    """Return whether an address belongs to an interface of this machine: no other address can be bound."""
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
    """Return the IPv4 address of an interface; "" if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return ""
