"""The network interface that gloo uses on a machine whose own name cannot be resolved or resolves to another address."""

from __future__ import annotations

import os
import socket

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.gloo.interface import INTERFACE, _address_of, choose_interface, own_host

_NO_NAME = "no-such-machine.invalid"  # RFC 2606: never resolved


@pytest.fixture
def choose(monkeypatch):
    """Return a function that chooses the interface on a machine with a name, for a rank with an endpoint."""
    monkeypatch.setenv(INTERFACE, "")

    def call(name: str, host: str, *, master: str = "127.0.0.1", machines: int = 1) -> str:
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        monkeypatch.setenv("PADDLE_CURRENT_ENDPOINT", f"{host}:6170")
        monkeypatch.setenv("PADDLE_MASTER", f"{master}:6171")
        monkeypatch.setenv("PADDLE_NNODES", str(machines))
        choose_interface()
        return os.environ[INTERFACE]

    return call


def network() -> tuple[str, str]:
    """Return an interface of this machine and its address; loopback on a machine without a network."""
    found = [(name, _address_of(name)) for _, name in socket.if_nameindex()]
    return next(((name, address) for name, address in found if address and name != "lo"), ("lo", "127.0.0.1"))


def test_a_machine_without_a_resolvable_name_uses_the_interface_of_its_endpoint(choose, capsys):
    assert choose(_NO_NAME, "127.0.0.1") == "lo"
    assert capsys.readouterr().err == (
        "Ranks are connected through the network interface lo, address 127.0.0.1: the name of this machine, "
        f"{_NO_NAME}, cannot be resolved.\n"
    )


def test_a_name_of_another_machine_is_not_used(choose, monkeypatch):
    """For example a stale line in /etc/hosts, or a name that resolves to the public address of a NAT."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: resolve("192.0.2.7" if host == "vm" else host, port))
    assert choose("vm", "127.0.0.1") == "lo"


def test_a_choice_of_the_user_is_kept(choose, monkeypatch, capsys):
    monkeypatch.setenv(INTERFACE, "lo")
    assert choose(_NO_NAME, "192.0.2.7", master="192.0.2.8", machines=2) == "lo"
    assert own_host() == "127.0.0.1"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(INTERFACE, "no-such-device")
    with pytest.raises(UserError, match="no-such-device is not a network interface of this machine. Use .*lo"):
        choose_interface()


def test_without_name_and_interface_one_message_explains_what_to_do(choose):
    with pytest.raises(UserError, match=f"cannot be resolved: {_NO_NAME}. Add the line '127.0.0.1 {_NO_NAME}'"):
        choose(_NO_NAME, "also-unknown.invalid")
    with pytest.raises(UserError, match="not an address of this machine: 192.0.2.7. Correct the line of"):
        choose(_NO_NAME, "192.0.2.7")  # RFC 5737: an address for documentation


def test_a_name_that_resolves_to_the_endpoint_changes_nothing(choose, capsys):
    assert choose("localhost", "127.0.0.1") == ""
    assert choose("localhost", "127.0.0.1", machines=2) == ""  # all of them are this machine
    assert capsys.readouterr().err == ""


def test_a_loopback_name_is_not_used_where_the_endpoint_is_in_the_network(choose):
    """Debian's 127.0.1.1: another machine would connect to itself."""
    interface, address = network()
    assert choose("localhost", address) == ("" if interface == "lo" else interface)


def test_on_several_machines_the_route_to_the_master_decides(choose, capsys):
    interface, address = network()
    if interface == "lo":
        with pytest.raises(UserError, match="The first machine of the job cannot be reached: 192.0.2.8"):
            choose("localhost", "127.0.1.1", master="192.0.2.8", machines=2)
        return
    assert choose("localhost", "127.0.1.1", master=address, machines=2) == interface
    assert own_host() == address  # and not the 127.0.1.1 that the launcher found
    expected = f"through the network interface {interface}, address {address}: the route to {address}.\n"
    assert capsys.readouterr().err.endswith(expected)
