"""Tests connect to this machine alone (pytest-socket)."""

import socket

import pytest
from pytest_socket import SocketConnectBlockedError


def test_connections_to_other_machines_fail():
    # An address that is reserved for documentation: no machine has it.
    with pytest.raises(SocketConnectBlockedError, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=str)
def test_connections_to_this_machine_work(family, tmp_path):
    address = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket")
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind(address)
        server.listen()
        client.connect(server.getsockname())
