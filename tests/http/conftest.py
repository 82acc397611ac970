"""A running HttpServer on port 0 with a FakeService behind it, and a client of raw bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fake_service import FakeService
from raw_client import RawClient

from modeld.clientlimits import LimitPolicy
from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.limits import Limits
from modeld.httpapi.quotas import Quotas
from modeld.httpapi.record import Record
from modeld.httpapi.server import HttpServer


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def limits() -> Limits:
    """Overridden by tests that want other limits."""
    return Limits()


@pytest.fixture
def gate() -> Gate:
    """No keys, and any Host: overridden by tests that ask what is let in."""
    return Gate(Rules(BrowserRules(allowed_hosts=("*",))))


@pytest.fixture
def quotas() -> Quotas:
    """As limits."""
    return Quotas(LimitPolicy())


@pytest.fixture
def server(service: FakeService, limits: Limits, gate: Gate, quotas: Quotas) -> Iterator[HttpServer]:
    server = HttpServer(service, "127.0.0.1", 0, limits, gate=gate, quotas=quotas)
    server.start()
    yield server
    service.hub.close()
    for generation in service.generations:
        generation.cancel()
    server.close(5.0)


@pytest.fixture
def records(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Those of all requests that have ended; the log tells less."""
    found: list[Record] = []
    monkeypatch.setattr(server._meter, "ended", found.append)
    return found


@pytest.fixture
def connect(server: HttpServer) -> Iterator[Callable[..., RawClient]]:
    clients: list[RawClient] = []

    def connect(source: str = "") -> RawClient:
        clients.append(RawClient(server.address, source))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[[], RawClient]) -> RawClient:
    return connect()
