"""A client that sends the bytes it is told and reads answers with the standard library's parser, strictly bounded in time."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

DEADLINE_S = 10.0


@dataclass
class Answer:
    status: int
    fields: dict[str, str]  # lower-case names
    body: bytes
    chunks: list[bytes] | None  # of a chunked answer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class RawClient:
    def __init__(self, peer: tuple[str, int] | socket.socket, source: str = "") -> None:
        """`peer`: an address, or a socket that is connected. `source`: the address to come from; on Linux any of 127.0.0.0/8."""
        if isinstance(peer, socket.socket):
            self.sock = peer
        else:
            self.sock = socket.create_connection(peer, timeout=DEADLINE_S, source_address=(source, 0))
        self.buffer = b""

    def send(self, data: bytes | str) -> RawClient:
        self.sock.sendall(data.encode("latin-1") if isinstance(data, str) else data)
        return self

    def request(self, method: str, target: str, body: object = None, *fields: str, version: str = "1.1") -> Answer:
        """Send a well-formed request and read its answer."""
        return self.post_only(method, target, body, *fields, version=version).answer(method)

    def post_only(self, method: str, target: str, body: object = None, *fields: str, version: str = "1.1") -> RawClient:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        return self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data)

    def answer(self, method: str = "GET") -> Answer:
        head = self.until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head[:-4].split("\r\n")
        fields = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in fields, f"field {name} twice"
            fields[name.lower()] = value.strip()
        assert status_line.startswith("HTTP/1.1 ")
        status = int(status_line.split(" ")[1])
        if method == "HEAD" or status < 200 or status in (204, 304):
            return Answer(status, fields, b"", None)
        if fields.get("transfer-encoding") == "chunked":
            chunks = []
            while chunk := self.chunk():
                chunks.append(chunk)
            return Answer(status, fields, b"".join(chunks), chunks)
        if "content-length" in fields:
            return Answer(status, fields, self.exactly(int(fields["content-length"])), None)
        return Answer(status, fields, self.rest(), None)

    def chunk(self) -> bytes:
        size = int(self.until(b"\r\n"), 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            data = self.sock.recv(65536)
            assert data, f"closed before {mark!r}; so far {self.buffer[:300]!r}"
            self.buffer += data
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def exactly(self, n_bytes: int) -> bytes:
        while len(self.buffer) < n_bytes:
            data = self.sock.recv(65536)
            assert data, f"closed after {len(self.buffer)} of {n_bytes} bytes"
            self.buffer += data
        data, self.buffer = self.buffer[:n_bytes], self.buffer[n_bytes:]
        return data

    def rest(self) -> bytes:
        """All bytes until the server closes; fails at a reset."""
        while data := self.sock.recv(65536):
            self.buffer += data
        data, self.buffer = self.buffer, b""
        return data

    def is_closed(self) -> bool:
        """Whether the server closed (waits for it), and said nothing more."""
        try:
            return self.rest() == b""
        except ConnectionResetError:
            return True

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def data_frames(body: bytes) -> list[Any]:
    """The frames of a stream of `data:` lines, decoded; "[DONE]" stays a string. Fails on anything but data and comments."""
    frames: list[Any] = []
    for block in body.decode().split("\n\n"):
        if block.startswith(":") or not block:
            continue
        assert block.startswith("data: "), block
        assert "\n" not in block, block
        data = block[len("data: ") :]
        frames.append(data if data == "[DONE]" else json.loads(data))
    return frames
