"""What is said on one connection, from its first request to its close? One exchange after another. The connection's thread."""

from __future__ import annotations

import contextlib
from typing import Protocol

from modeld.errors import ModeldError
from modeld.httpapi.connection import Connection, Disconnected, EndOfInput
from modeld.httpapi.exchange import After, Exchange, Site


class Turnstile(Protocol):
    """What the server wants to know of a connection, so that it can end the idle ones and wait for the others."""

    def enter(self) -> bool:
        """A request has come; False: no answer is begun, the server is stopping or has hung up."""

    def leave(self) -> bool:
        """It is answered; False: no other one is waited for."""


def serve(connection: Connection, site: Site, turnstile: Turnstile) -> bool:
    """Answer the requests of one connection, one after another, and close it; False: it was handed over, still open."""
    first = True
    after = After.NEXT
    try:
        while True:
            try:
                raw_head = connection.read_head(first)
            except ModeldError as error:
                Exchange(connection, site).refuse(error)
                break
            if raw_head is None or not turnstile.enter():
                break
            after = Exchange(connection, site).run(raw_head)
            if after is After.HANDED_OVER:
                return False
            if not turnstile.leave() or after is After.CLOSE:
                break
            first = False
        connection.finish()
    except EndOfInput:
        connection.finish()  # what was answered before is on its way; a reset would overtake it
    except Disconnected:
        connection.abort()
    finally:
        if after is not After.HANDED_OVER:
            with contextlib.suppress(OSError):
                connection.sock.close()
    return True
