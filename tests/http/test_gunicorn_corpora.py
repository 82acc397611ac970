"""gunicorn's own corpora against the real server: what must be refused is refused, what is valid is read as gunicorn reads it.

Every route answers with what the server has read, so that nothing but the parser refuses. The files come from gunicorn's
source distribution (make test fetches them); each one that is not treated as there is listed here with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from fake_service import FakeService
from raw_client import Answer, RawClient

from modeld.httpapi import exchange
from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.caller import Access
from modeld.httpapi.limits import Limits
from modeld.httpapi.message import Request, Response, json_response
from modeld.httpapi.router import Route
from modeld.httpapi.server import HttpServer
from modeld.httpapi.service import Service
from tests.http.corpora import FOLDER, Case, load, with_hosts, with_its_length, without_preamble

# -- invalid cases that are read

UNDERSCORE = "a name with '_' is another name: only CGI's variables, which modeld has not, take it for one with '-'"
READ_AS_THEY_ARE = {"040": UNDERSCORE}
READ_ONCE_THEY_HAVE_A_HOST = {
    "003c": "a method in lower case is a method (RFC 9110 9.1) that no route has",
    "019": "X-Forwarded-Proto and X-Forwarded-Ssl contradict each other; modeld reads neither",
    "040": UNDERSCORE,
    "chunked_07": UNDERSCORE,
}

# -- valid cases that are not read

MALFORMED = {
    "005": "a target has no fragment (RFC 9112 3.2); where '#' is let through, some parsers cut there and others do not",
    "028": "a blank before the colon must be refused (RFC 9112 5.1); gunicorn's strip_header_spaces is not to be had",
    "compat_obs_fold": "a folded line may be refused (RFC 9112 5.2); gunicorn's permit_obsolete_folding is not to be had",
    "compat_obs_fold_huge": "as compat_obs_fold",
    "rfc9112_target_absolute_userinfo_01": "a user before the host is to be treated as an error (RFC 9110 4.2.4)",
}
OTHER_CODING = "framed well, but in a coding that is not understood: 501 and close (RFC 9112 6.1)"
NOT_IMPLEMENTED = dict.fromkeys(
    ["025", "025_line", "029", "030", "rfc9112_smuggle_gzip_chunked_01", "rfc9112_smuggle_te_identity_chunked_01"], OTHER_CODING
)

CUT = "099"  # announces 17,914 bytes of body and has 8,599


@pytest.fixture(autouse=True)
def corpora() -> None:
    if not FOLDER.is_dir():
        pytest.skip("gunicorn's corpora are not here: make build/corpora/fetched brings them, from the package index")


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request, service: Service) -> Response:
        head = request.head
        return json_response(
            200,
            {
                "method": head.method,
                "uri": head.target,
                "version": [1, head.minor],
                "headers": [[name.upper(), value] for name, value in head.fields],
                "body": request.body.decode("latin-1"),
            },
        )

    def match(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        return Route("GET", path, answer, Access.OPEN), {}

    monkeypatch.setattr(exchange, "match", match)


@contextmanager
def connected(case: Case) -> Iterator[RawClient]:
    """To a server with the limits that gunicorn has for the case. It counts a line's CR LF, and bounds no head as a whole."""
    line_bytes = case.options.get("limit_request_field_size") or 8190
    if case.expected == "LimitRequestLine":
        line_bytes = 4094  # gunicorn's default
    limits = Limits(
        head_line_bytes=line_bytes - 2,
        head_fields=case.options.get("limit_request_fields", 100),
        head_bytes=1 << 17,
        head_s=0.5,
        body_s=0.5,
    )
    server = HttpServer(FakeService(), "127.0.0.1", 0, limits, gate=Gate(Rules(BrowserRules(allowed_hosts=("*",)))))
    server.start()
    client = RawClient(server.address)
    try:
        yield client
    finally:
        client.close()
        server.close(5.0)


# -- invalid


def refusal(case: Case, raw: bytes) -> int | None:
    """The status by which the server refused it, closing without another response; None: it read it."""
    with connected(case) as client:
        answer = client.send(raw).answer()
        if answer.status < 400:
            return None
        assert answer.fields["connection"] == "close", case.name
        assert client.rest() == b"", f"{case.name}: a second response"
        return int(answer.status)


def test_invalid_requests_are_refused_and_nothing_that_follows_is_answered():
    cases = load("invalid")
    refusals = {case.name: refusal(case, case.raw) for case in cases}
    read = {name for name, status in refusals.items() if status is None}
    print(f"invalid, as they are: {len(cases) - len(read)} of {len(cases)} refused")
    assert read == set(READ_AS_THEY_ARE)
    assert len(cases) == 81


def test_invalid_requests_are_refused_for_their_own_fault_and_not_for_a_missing_host():
    cases = load("invalid")
    changed = {case.name: with_hosts(case.raw, 1) for case in cases}
    refusals = {case.name: refusal(case, changed[case.name]) for case in cases}
    read = {name for name, status in refusals.items() if status is None}
    print(f"invalid, each with a Host: {len(cases) - len(read)} of {len(cases)} refused; {refusals}")
    assert read == set(READ_ONCE_THEY_HAVE_A_HOST)
    assert sum(changed[case.name] != case.raw for case in cases) > 20
    limits = {case.name for case in cases if case.expected in ("LimitRequestLine", "LimitRequestHeaders")}
    assert {refusals[name] for name in limits} == {431}


# -- valid


def adapted(case: Case) -> bytes:
    raw = without_preamble(case.raw) if case.options.get("proxy_protocol") else case.raw
    raw = with_its_length(raw) if case.name == CUT else raw
    return with_hosts(raw, len(case.requests))


def as_gunicorn_reads(case: Case, answer: Answer, expected: dict[str, object]) -> bool:
    seen = answer.json
    if case.options.get("header_map") != "dangerous":
        seen["headers"] = [field for field in seen["headers"] if "_" not in field[0]]  # gunicorn drops these
    if case.options.get("casefold_http_method"):
        seen["method"] = seen["method"].upper()
    body = expected["body"]
    wanted_fields = [list(field) for field in expected["headers"]]  # type: ignore[attr-defined]
    return bool(
        [seen["method"], seen["uri"], seen["version"]] == [expected["method"], expected["uri"], list(expected["version"])]  # type: ignore[call-overload]
        and [field for field in seen["headers"] if field != ["HOST", "corpus.test"]] == wanted_fields
        and seen["body"] == (body.decode("latin-1") if isinstance(body, bytes) else body)
    )


def outcome(case: Case, raw: bytes) -> int | None:
    """None: read, all of its requests and no more, as gunicorn reads them. Else the status that refused it."""
    with connected(case) as client:
        client.send(raw)
        for expected in case.requests:
            answer = client.answer()
            if answer.status >= 400:
                return int(answer.status)
            if case.name == CUT:
                expected = {
                    **expected,
                    "headers": [["CONTENT-LENGTH", "8599"] if f[0] == "CONTENT-LENGTH" else f for f in expected["headers"]],
                }
            if expected["method"] == "OPTIONS":  # answered before any route is looked for
                assert answer.status == 204, case.name
                continue
            assert as_gunicorn_reads(case, answer, expected), f"{case.name}: {answer.json} for {expected}"
        client.half_close()
        assert client.rest() == b"", f"{case.name}: more responses than requests"
        return None


def test_valid_requests_are_read_as_gunicorn_reads_them():
    cases = load("valid")
    outcomes = {case.name: outcome(case, adapted(case)) for case in cases}
    malformed = {name for name, status in outcomes.items() if status == 400}
    not_implemented = {name for name, status in outcomes.items() if status == 501}
    n_read = sum(status is None for status in outcomes.values())
    print(
        f"valid: {n_read} of {len(cases)} read, {len(not_implemented)} framed but in a coding that is answered 501,"
        f" {len(malformed)} refused"
    )
    assert malformed == set(MALFORMED)
    assert not_implemented == set(NOT_IMPLEMENTED)
    assert n_read + len(malformed) + len(not_implemented) == len(cases) == 62
    # The six that get a 501 are not answered, but read as valid: a 400 would be wrong for them, and is what the malformed get.
    assert n_read + len(not_implemented) >= 57


def test_a_body_that_is_cut_is_waited_for_and_then_refused():
    [case] = [case for case in load("valid") if case.name == CUT]
    announced = re.search(rb"Content-Length: (\d+)", case.raw)
    assert announced is not None
    assert int(announced[1]) > len(case.raw.partition(b"\r\n\r\n")[2])
    assert refusal(case, case.raw) == 408
