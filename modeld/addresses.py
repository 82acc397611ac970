"""Which address does a configured host mean? Its own text, and never what a resolver says: no start waits for a name server.

`localhost` is 127.0.0.1, where most clients of that name look. Other names are refused: what they stand for would be
decided by a network, at a start, and could be another host's business at the next.
"""

from __future__ import annotations

import ipaddress

LOCALHOST = "127.0.0.1"


def parse_host(text: str) -> str:
    """The address in its usual spelling; an IPv6 one may name its interface (fe80::1%eth0). Raises ValueError with the reason."""
    if text.lower() == "localhost":
        return LOCALHOST
    if text.startswith("[") or text.endswith("]"):
        raise ValueError(f"an IPv6 address is written without brackets here, found {text[:80]!r}")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(
            f"expected an IPv4 or IPv6 address or localhost, found {text[:80]!r}: names are not looked up, write their address"
        ) from None
