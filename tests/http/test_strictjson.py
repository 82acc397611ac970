"""Which JSON bodies are taken. Pure."""

from __future__ import annotations

import time

import pytest

from modeld.errors import InvalidRequest
from modeld.httpapi.strictjson import MAX_DEPTH, parse, parse_object


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00"]}', {"a": [1, -2500.0, True, None, "é😀"]}),
        ('"é😀"'.encode(), "é😀"),
        (b"[18446744073709551615]", [2**64 - 1]),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b'["' + b"[{" * 500 + b'\\""]', ["[{" * 500 + '"']),
        (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
    ],
)
def test_json_is_read(body, value):
    parsed = parse(body)
    assert value is None or parsed == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xed\xa0\x80"',  # a surrogate in UTF-8's clothes
        b'"\\ud800"',
        b'{"\\uDC00": 1}',
        b'[{"a": ["\\ud800x"]}]',
        b"NaN",
        b"[-Infinity]",
        b"[1e999]",
        b"[-1e999]",
        b"[123456789012345678901]",
        b"[" + b"9" * 5000 + b"]",
        b'{"a": 1, "b": 2, "a": 1}',
        b'[{"x": {"a": 1, "\\u0061": 2}}]',
        b'"a\nb"',
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_json_that_could_be_read_in_two_ways_is_refused(body):
    with pytest.raises(InvalidRequest):
        parse(body)


def test_the_parameter_of_an_error_is_text_that_can_be_sent():
    with pytest.raises(InvalidRequest) as refused:
        parse(b'{"\\ud800": 1, "\\ud800": 2}')
    assert refused.value.param is None
    assert refused.value.message.isprintable()


def test_many_names_with_one_twice_take_no_long_time():
    body = b"{" + b",".join(b'"%d":0' % i for i in range(90_000)) + b',"89999":1}'
    start = time.thread_time()
    with pytest.raises(InvalidRequest, match="89999"):
        parse(body)
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("body", [b"", b" ", b"[]", b"1", b'"x"', b"null", b"true", b"1.5"])
def test_a_request_is_an_object(body):
    with pytest.raises(InvalidRequest, match="object"):
        parse_object(body)
