"""Two hosts on one machine: network namespaces joined by a cable, each with its own name and /etc/hosts.

The names are in /etc/hosts as Debian writes them (127.0.1.1), or not at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.skips import needs

_ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Host:
    """One of the two hosts.

    Attributes:
        name: Host name, also of its namespace and its end of the cable.
        address: Address on the cable.
        hosts_file: Its /etc/hosts.
    """

    name: str
    address: str
    hosts_file: Path

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` on this host."""
        enter = ["unshare", "--uts", "--mount", "sh", "-c", _ENTER, "sh", self.name, str(self.hosts_file)]
        return ["ip", "netns", "exec", self.name, *enter, *words]

    def connect(self, connected: bool) -> None:
        """Plug the cable in or out at this host."""
        _run("ip", "-n", self.name, "link", "set", self.name, "up" if connected else "down")


@contextmanager
def two_hosts(folder: Path, *, names_resolve: bool = True) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts; skip the calling test where this machine does not allow them."""
    tag = f"pl{os.getpid()}"
    hosts = (
        _host(folder, f"{tag}a", "10.201.7.1", names_resolve),
        _host(folder, f"{tag}b", "10.201.7.2", names_resolve),
    )
    present = shutil.which("ip") is not None and shutil.which("unshare") is not None
    needs("network namespaces", present, "`ip` of iproute2 and `unshare` of util-linux")
    tried = subprocess.run(["ip", "netns", "add", hosts[0].name], capture_output=True, text=True)
    needs("network namespaces", tried.returncode == 0, tried.stderr.strip())
    try:
        _run("ip", "netns", "add", hosts[1].name)
        _run("ip", "link", "add", hosts[0].name, "netns", hosts[0].name, "type", "veth",
             "peer", "name", hosts[1].name, "netns", hosts[1].name)  # fmt: skip
        for host in hosts:
            _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.name)
            _run("ip", "-n", host.name, "link", "set", "lo", "up")
            host.connect(True)
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def _host(folder: Path, name: str, address: str, names_resolve: bool) -> Host:
    file = folder / f"{name}.hosts"
    file.write_text("127.0.0.1 localhost\n" + (f"127.0.1.1 {name}\n" if names_resolve else ""))
    return Host(name, address, file)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
