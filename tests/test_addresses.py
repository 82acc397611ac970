"""What a configured host means, without asking anybody."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.addresses import parse_host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("LocalHost", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_address_is_taken_in_its_usual_spelling(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "modeld.example",
        "localhost.",
        "127.1",
        "0127.0.0.1",
        "2130706433",
        "256.0.0.1",
        "1.2.3.4:80",
        "*",
        " ::1",
        "::1%",
        "a b",
    ],
)
def test_names_and_what_only_a_resolver_understands_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected an IPv4 or IPv6 address or localhost, found"):
        parse_host(text)


@pytest.mark.parametrize("text", ["[::1]", "[::1", "::1]"])
def test_brackets_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="without brackets"):
        parse_host(text)


@given(st.text(max_size=60))
def test_whatever_is_written_is_an_address_or_a_reason_and_nobody_is_asked(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", None)
        try:
            host = parse_host(text)
        except ValueError:
            return
        assert parse_host(host) == host
