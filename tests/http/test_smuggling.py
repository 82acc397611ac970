"""No vector of the table makes the server take hidden bytes for a request, and legal pipelining is answered as what it is."""

from __future__ import annotations

import pytest
from raw_client import RawClient

from modeld.httpapi.limits import Limits
from modeld.httpapi.record import Record
from modeld.httpapi.server import HttpServer
from tests.http.smuggling import VECTORS, Vector


@pytest.fixture
def limits() -> Limits:
    return Limits(head_s=0.5, body_s=0.5)  # some vectors announce what never comes


def test_there_are_enough_vectors_and_each_has_a_name_of_its_own():
    assert len(VECTORS) >= 120
    assert len({vector.name for vector in VECTORS}) == len({vector.raw for vector in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("number", range(len(VECTORS)), ids=[vector.name for vector in VECTORS])
def test_hidden_bytes_are_no_request(number: int, server: HttpServer, client: RawClient, records: list[Record]):
    vector: Vector = VECTORS[number]
    raw = vector.numbered(number)
    client.send(raw)
    method = raw.strip().split(b" ")[0].decode("latin-1")
    assert tuple(client.answer(method if i == 0 else "GET").status for i in range(len(vector.answers))) == vector.answers
    if vector.stays:
        answer = client.request("GET", "/livez?innocent=000", None, "X-Request-Id: innocent", "Connection: close")
        assert (answer.status, answer.fields["x-request-id"]) == (200, "innocent")
    assert client.rest() == b"", "more responses than requests"
    client.close()
    server.close(5.0)  # all records are there then
    targets = [record.target for record in records if record.method != "-"]
    assert not [target for target in targets if "smuggled" in target]
    assert [target for target in targets if "second" in target] == [f"/livez?second={number:03}"] * (b"second" in raw)
