"""Who a key or a uid is, and what they may do. Pure."""

from __future__ import annotations

import hashlib

import pytest

from modeld.errors import InvalidApiKey, InvalidRequest, PermissionDenied
from modeld.httpapi.caller import Access, Caller, KeyRules, Peer
from modeld.httpapi.head import parse_head
from modeld.types import ApiKey

USE, ADMIN = "use-canary-0123456789", "admin-canary-987654321"
KEYS = tuple(ApiKey(name, name == "ops", hashlib.sha256(key.encode()).digest()) for name, key in (("web", USE), ("ops", ADMIN)))
RULES = KeyRules(KEYS)
TCP, BY_ROOT, BY_WEB, BY_OTHER = Peer("192.0.2.1"), Peer("unix", 0), Peer("unix", 33), Peer("unix", 99)
WITH_UIDS = KeyRules((), frozenset({0}), frozenset({33}), uids_are_listed=True)


def admit(rules: KeyRules, *fields: str, access: Access = Access.USE, peer: Peer = TCP) -> Caller:
    return rules.admit(parse_head("\r\n".join(["GET / HTTP/1.1", "Host: h", *fields, "", ""]).encode("latin-1")), access, peer)


@pytest.mark.parametrize(
    "field",
    [
        f"Authorization: Bearer {USE}",
        f"authorization: bearer {USE}",
        f"Authorization: BEARER   {USE}",
        f"X-Api-Key: {USE}",
        f"x-api-key:{USE}  ",
    ],
)
def test_a_key_is_sent_in_either_field(field: str) -> None:
    caller = admit(RULES, field)
    assert (caller.name, caller.client, caller.may) == ("web", "key:web", frozenset({Access.OPEN, Access.USE}))


def test_admin_includes_use() -> None:
    for access in Access:
        assert admit(RULES, f"X-Api-Key: {ADMIN}", access=access).name == "ops"
    with pytest.raises(PermissionDenied, match="needs the scope admin; web has"):
        admit(RULES, f"X-Api-Key: {USE}", access=Access.ADMIN)


def test_the_same_key_twice_is_one_and_two_are_refused() -> None:
    assert admit(RULES, f"Authorization: Bearer {USE}", f"X-Api-Key: {USE}").name == "web"
    for fields in ((f"Authorization: Bearer {USE}", f"X-Api-Key: {ADMIN}"), (f"X-Api-Key: {USE}", f"X-Api-Key: {ADMIN}")):
        with pytest.raises(InvalidRequest, match="two API keys"):
            admit(RULES, *fields)
        assert admit(RULES, *fields, access=Access.OPEN).name == "anonymous"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("X: y", "is needed"),
        ("Authorization: Bearer", "is needed"),
        ("X-Api-Key: ", "is needed"),
        (f"Authorization: Basic {USE}", "is needed"),
        (f"Authorization: {USE}", "is needed"),
        (f"Cookie: key={USE}", "is needed"),
        (f"Authorization: Bearer {USE}x", "is none of"),
        (f"Authorization: Bearer {USE[:-1]}", "is none of"),
        (f"Authorization: Bearer {USE.upper()}", "is none of"),
        (f"Authorization: Bearer {USE} {USE}", "is none of"),
        ("X-Api-Key: none", "is none of"),
        ("X-Api-Key: \xe4\xf6", "is none of"),
        (f"X-Api-Key: {KEYS[0].digest.hex()}", "is none of"),
        (f"X-Api-Key: sha256:{KEYS[0].digest.hex()}", "is none of"),  # the file's word does not open
    ],
)
def test_anything_else_is_no_key_and_is_never_quoted(field: str, said: str) -> None:
    with pytest.raises(InvalidApiKey, match=said) as error:
        admit(RULES, field)
    assert "canary" not in error.value.message.lower()
    assert admit(RULES, field, access=Access.OPEN) == Caller("anonymous", "192.0.2.1", frozenset({Access.OPEN}))


def test_open_routes_know_who_brings_a_key() -> None:
    assert admit(RULES, f"X-Api-Key: {ADMIN}", access=Access.OPEN).name == "ops"


def test_without_keys_everybody_may_everything_whatever_they_send() -> None:
    for fields in ((), ("X-Api-Key: none",), ("Authorization: Bearer none", "X-Api-Key: other")):
        caller = admit(KeyRules(), *fields, access=Access.ADMIN)
        assert (caller.name, caller.client, caller.may) == ("anonymous", "192.0.2.1", frozenset(Access))


# -- Unix sockets


def test_a_uid_stands_for_a_key() -> None:
    for rules in (WITH_UIDS, KeyRules(KEYS, frozenset({0}), frozenset({33}))):
        assert admit(rules, peer=BY_ROOT, access=Access.ADMIN).name == "uid:0"
        assert admit(rules, peer=BY_WEB).client == "uid:33"
        with pytest.raises(PermissionDenied, match="uid:33 has the scope use"):
            admit(rules, peer=BY_WEB, access=Access.ADMIN)


def test_other_uids_need_a_key_where_there_are_any() -> None:
    rules = KeyRules(KEYS, frozenset({0}))
    assert admit(rules, f"X-Api-Key: {ADMIN}", peer=BY_OTHER, access=Access.ADMIN).name == "ops"
    with pytest.raises(InvalidApiKey):
        admit(rules, peer=BY_OTHER)


def test_a_key_goes_before_the_uid_and_a_wrong_one_does_not() -> None:
    rules = KeyRules(KEYS, frozenset({0}))
    assert admit(rules, f"X-Api-Key: {USE}", peer=BY_ROOT).name == "web"
    assert admit(rules, "X-Api-Key: none", peer=BY_ROOT).name == "uid:0"  # OpenAI's client sends one always


def test_other_uids_are_refused_once_some_are_listed() -> None:
    with pytest.raises(PermissionDenied, match=r"uid 99 is listed neither in server\.unix_admin_uids"):
        admit(WITH_UIDS, "X-Api-Key: none", peer=BY_OTHER)
    assert admit(WITH_UIDS, peer=BY_OTHER, access=Access.OPEN).may == {Access.OPEN}
    assert admit(WITH_UIDS, peer=TCP, access=Access.ADMIN).name == "anonymous"  # loopback, or insecure
    assert admit(KeyRules((), frozenset({0})), peer=BY_OTHER, access=Access.ADMIN).name == "anonymous"
