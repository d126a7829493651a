"""Refuses every connection and name look-up beyond loopback, for the whole process; unix sockets and the like are left alone."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any


class NetworkRefused(RuntimeError):
    """A test reached for the network. No OSError, so that no fallback for being offline swallows it."""


def install() -> None:
    """In force from now on."""
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded_method(getattr(socket.socket, name)))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _guarded_lookup(getattr(socket, name)))


def _refuse_beyond_loopback(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", "::1") or str(name).startswith("127."):
        return
    raise NetworkRefused(
        f"a test reached for {name!r}: tests do without a network; build the data or the model in the test"
    )


def _guarded_method(original: Callable[..., Any]) -> Callable[..., Any]:
    """Of a socket; the address comes last."""

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_beyond_loopback(arguments[-1][0])
        return original(self, *arguments)

    return guarded


def _guarded_lookup(original: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: Any, *arguments: Any, **named: Any) -> Any:
        _refuse_beyond_loopback(host)
        return original(host, *arguments, **named)

    return guarded
