"""The network interface that gloo takes on a machine whose own name leads nowhere, or elsewhere."""

from __future__ import annotations

import os
import socket

import pytest

from paddle_llm.config.errors import UserError
from paddle_llm.parallel.gloo_interface import INTERFACE, choose_interface

_NO_NAME = "no-such-machine.invalid"  # RFC 2606: never resolved


@pytest.fixture(autouse=True)
def _no_choice_of_the_user(monkeypatch):
    monkeypatch.setenv(INTERFACE, "")


def test_a_machine_without_a_resolvable_name_uses_the_interface_of_its_endpoint(monkeypatch, capsys):
    monkeypatch.setattr(socket, "gethostname", lambda: _NO_NAME)
    choose_interface("127.0.0.1")
    assert os.environ[INTERFACE] == "lo"
    assert capsys.readouterr().err == (
        f"The name of this machine cannot be resolved: {_NO_NAME}. Ranks are connected through the network interface lo.\n"
    )


def test_a_choice_of_the_user_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(socket, "gethostname", lambda: _NO_NAME)
    monkeypatch.setenv(INTERFACE, "lo")
    choose_interface("192.0.2.7")
    assert os.environ[INTERFACE] == "lo"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(INTERFACE, "no-such-device")
    with pytest.raises(UserError, match="no-such-device is not a network interface of this machine. Use .*lo"):
        choose_interface("127.0.0.1")


def test_without_name_and_interface_one_message_names_the_remedy(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: _NO_NAME)
    with pytest.raises(UserError, match=f"cannot be resolved: {_NO_NAME}. Add the line '127.0.0.1 {_NO_NAME}'"):
        choose_interface("also-unknown.invalid")
    with pytest.raises(UserError, match="not an address of this machine: 192.0.2.7. Correct the line of"):
        choose_interface("192.0.2.7")  # RFC 5737: nobody's address; a stale line in /etc/hosts has this effect


def test_a_name_that_leads_to_the_endpoint_changes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    choose_interface("127.0.0.1")
    assert os.environ[INTERFACE] == ""
    assert capsys.readouterr().err == ""


def test_a_loopback_name_is_not_used_where_the_endpoint_is_in_the_network(monkeypatch):
    """Debian's 127.0.1.1: another machine would connect to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.7", 9))  # nothing is sent
        except OSError:
            return  # a machine without a network: its loopback address is right
        address = str(probe.getsockname()[0])
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    choose_interface(address)
    expected = "" if address.startswith("127.") else [n for _, n in socket.if_nameindex() if n != "lo"]
    assert os.environ[INTERFACE] in expected
