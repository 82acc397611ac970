"""Who asks, and what may they do? Caller, the access that a route asks for, and the rules by which a key or a uid has it.

Pure. Keys come as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; neither they nor parts of them go into a message.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from modeld.errors import InvalidApiKey, InvalidRequest, PermissionDenied
from modeld.httpapi.head import RequestHead
from modeld.types import ApiKey


class Access(enum.Enum):
    """What a route asks of its caller."""

    OPEN = "open"  # nothing: the probes of whoever supervises the daemon
    USE = "use"  # generation, and reading
    ADMIN = "admin"  # what changes which model answers


UNIX = "unix"
"""Stands where the address of a client of a Unix socket would."""

_USE = frozenset((Access.OPEN, Access.USE))
_ADMIN = frozenset(Access)
_NOTHING = frozenset((Access.OPEN,))


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is for logs and metrics: it is the operator's word, never the client's. `client` is by what quotas count."""

    name: str
    client: str
    may: frozenset[Access]


def counted_as(client: str) -> str:
    """An IPv6 address stands for its /64: a host takes as many of those as it likes. All else stands for itself."""
    if ":" not in client:
        return client
    try:
        address = ipaddress.IPv6Address(client)
    except ValueError:  # no address: the name of a key
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    address: str  # UNIX for a Unix socket
    uid: int | None = None  # of the process that connected to a Unix socket


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Without keys everybody may everything; on a Unix socket that ends with the first uid that is listed, too."""

    keys: tuple[ApiKey, ...] = ()
    admin_uids: frozenset[int] = frozenset()
    use_uids: frozenset[int] = frozenset()
    uids_are_listed: bool = False  # by the operator: whoever is not among them needs a key

    def admit(self, head: RequestHead, access: Access, peer: Peer) -> Caller:
        """Who it is, if they may. Raises InvalidRequest for two keys, InvalidApiKey, PermissionDenied."""
        sent = _sent_keys(head) if self.keys else frozenset()
        if len(sent) > 1 and access is not Access.OPEN:
            raise InvalidRequest("the request has two API keys that differ; send one")
        caller = self._identify(sent, peer)
        if caller is None and access is Access.OPEN:
            return Caller("anonymous", peer.address, _NOTHING)
        if caller is None:
            raise self._refusal(sent, peer)
        if access not in caller.may:
            raise PermissionDenied(f"this needs the scope {access.value}; {caller.name} has the scope use alone")
        return caller

    def _identify(self, sent: frozenset[str], peer: Peer) -> Caller | None:
        """A key goes before the uid, so that somebody who has both can act as less."""
        if len(sent) == 1 and (key := self._find(*sent)) is not None:
            return Caller(key.name, f"key:{key.name}", _ADMIN if key.admin else _USE)
        if peer.uid is not None:
            name = f"uid:{peer.uid}"
            if peer.uid in self.admin_uids:
                return Caller(name, name, _ADMIN)
            if peer.uid in self.use_uids:
                return Caller(name, name, _USE)
        if self.keys or (peer.uid is not None and self.uids_are_listed):
            return None
        return Caller("anonymous", peer.address, _ADMIN)

    def _find(self, sent: str) -> ApiKey | None:
        """How long it takes tells nothing: each digest is compared, whole, whichever fits."""
        digest = hashlib.sha256(sent.encode("latin-1")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refusal(self, sent: frozenset[str], peer: Peer) -> InvalidApiKey | PermissionDenied:
        if not self.keys:
            return PermissionDenied(f"uid {peer.uid} is listed neither in server.unix_admin_uids nor in server.unix_use_uids")
        if sent:
            return InvalidApiKey("the API key that was sent is none of this server's")
        return InvalidApiKey("an API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY")


def _sent_keys(head: RequestHead) -> frozenset[str]:
    """The same one given twice is one. Other schemes than Bearer are somebody else's, a proxy's perhaps."""
    sent = {value for name, value in head.fields if name == "x-api-key"}
    for name, value in head.fields:
        if name == "authorization":
            scheme, _, key = value.partition(" ")
            if scheme.lower() == "bearer":
                sent.add(key.strip(" \t"))
    return frozenset(sent - {""})
