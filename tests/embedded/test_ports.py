"""Ports: what is in use, and what is free."""

import socket

from posthouse.embedded.ports import free_ports, obstacle


def test_a_port_with_a_listener_is_in_use_and_free_again_after() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert obstacle("127.0.0.1", port) == "it is in use"
        assert obstacle("localhost", port) == "it is in use"
    assert obstacle("127.0.0.1", port) is None


def test_a_host_that_is_not_ours_has_an_obstacle() -> None:
    assert obstacle("192.0.2.1", 0) is not None


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(obstacle("127.0.0.1", port) is None for port in ports)
