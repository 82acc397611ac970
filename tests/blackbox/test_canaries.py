"""Secrets are planted wherever a request can carry one; none of them reaches the log, at any level, in any encoding."""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tests.daemon import DEADLINE_S, ROOT, Daemon, demo_config, kept_beside

N_LINES = 10_000  # wanted at least
N_THREADS = 4
CANARY = "Ostrich5f3a91c7"
KEY = f"key.{CANARY}.0123456789"

# As it was planted, in any case; and as a log could show it after decoding or encoding.
SPELLINGS = [
    CANARY,
    quote("".join(f"%{ord(c):02x}" for c in CANARY), safe="%"),
    CANARY.encode().hex(),
    *(base64.b64encode(b"x" * shift + CANARY.encode())[4:-4].decode() for shift in range(3)),
    "".join(f"\\u{ord(c):04x}" for c in CANARY),
    ", ".join(str(byte) for byte in CANARY.encode()),
]


def head(method: str, target: str, *fields: str, host: str = "localhost", key: str = KEY) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


LAST = head("GET", "/livez", "Connection: close")


def post(target: str, body: object, *fields: str, key: str = KEY) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", target, "Content-Type: application/json", f"Content-Length: {len(data)}", *fields, key=key) + data


def whole_requests() -> Iterator[bytes]:
    """Requests after which the connection goes on: they are read to their end, answered well or not."""
    text = f"Tell nobody: {CANARY}."
    escaped = "".join(f"\\u{ord(c):04x}" for c in CANARY)
    few = {"max_tokens": 1, "temperature": 0}
    # Keys and headers.
    yield head("GET", "/status", key=CANARY)
    yield head("GET", "/status", key=f"sk-{CANARY}-wrong-but-long-enough")
    basic = base64.b64encode(f"user:{CANARY}".encode()).decode()
    for field in (
        f"X-Api-Key: {CANARY}", f"Cookie: session={CANARY}", f"User-Agent: {CANARY}", f"Referer: http://h/?q={CANARY}",
        f"X-{CANARY}: 1", f"Accept: {CANARY}", f"Proxy-Authorization: Basic {basic}", f"X-Request-Id: {CANARY} {CANARY}",
        f"Last-Event-ID: {CANARY}", f"X-Forwarded-For: {CANARY}", f"If-Match: {CANARY}",
    ):  # fmt: skip
        yield head("GET", "/models", field)
        yield post("/switch", {"model_id": "nothing"}, field)
    yield head("GET", "/status", f"Origin: https://{CANARY}.example")
    yield head("GET", "/status", host=f"{CANARY}.example")
    yield post("/switch", {"model_id": "nothing"}, f"Content-Encoding: {CANARY}")
    yield head("POST", "/switch", f"Content-Type: {CANARY}/json", "Content-Length: 2") + b"{}"
    # Targets.
    names = ("key", CANARY, "wait", "limit", "last_event_id")
    for query in (*(f"{name}={CANARY}" for name in names), CANARY, f"a={SPELLINGS[1]}"):
        yield head("GET", f"/status?{query}")
        yield head("GET", f"/ops?{query}")
        yield post(f"/switch?{query}", {"model_id": "nothing"})
    starts = ("", "/ops", "/v1/models", "/status", "/quarantine")
    for path in (f"{start}/{segment}" for start in starts for segment in (CANARY, SPELLINGS[1])):
        yield head("GET", path)
        yield head("DELETE", path)
    yield head("GET", f"http://localhost/{CANARY}?{CANARY}")
    yield head(CANARY.upper(), "/status")
    # Bodies that are good, or good JSON that is refused.
    yield post("/v1/completions", {"prompt": text, **few})
    yield post("/v1/completions", {"prompt": text, "stream": True, "echo": True, "logprobs": 2, "stop": [CANARY], **few})
    yield post("/v1/completions", f'{{"prompt": "{escaped}", "max_tokens": 1}}'.encode())
    yield post("/v1/completions", {"prompt": list(CANARY.encode()), **few})
    yield post("/v1/completions", {"prompt": text, "model": CANARY, **few})
    yield post("/v1/completions", {"prompt": text, "user": CANARY, CANARY: CANARY, "metadata": {CANARY: CANARY}, **few})
    yield post("/v1/completions", {"prompt": text, "temperature": CANARY, **few})
    yield post("/v1/completions", {"prompt": text, "grammar": f'root ::= "{CANARY}"', **few})
    yield post("/v1/completions", {"prompt": text, "grammar": f"root ::= {CANARY} [", **few})
    yield post("/v1/completions", {"prompt": f"{CANARY} " * 3000, **few})
    yield post("/v1/completions", {"prompt": text, "json_schema": {"const": CANARY}, **few})
    yield post("/v1/completions", {"prompt": text, "json_schema": {"pattern": CANARY, CANARY: 1}, **few})
    said = [{"role": "system", "content": text}, {"role": "user", "content": CANARY, "name": CANARY}]
    tool = {"type": "function", "function": {"name": CANARY, "description": text, "parameters": {"type": CANARY}}}
    yield post("/v1/chat/completions", {"messages": said, **few})
    yield post("/v1/chat/completions", {"messages": [{"role": CANARY, "content": CANARY}], **few})
    yield post("/v1/chat/completions", {"messages": said, "tools": [tool], "tool_choice": "required", **few})
    yield post("/v1/chat/completions", {"messages": said, "response_format": {"type": CANARY}, **few})
    yield post("/apply-template", {"messages": said, "tools": [tool]})
    yield post("/v1/embeddings", {"input": [text], "model": CANARY})
    yield post("/v1/embeddings", {"input": [text]})
    yield post("/tokenize", {"content": text, "with_pieces": True})
    yield post("/detokenize", {"tokens": [CANARY]})
    yield post("/switch", {"model_id": CANARY})
    yield post("/switch", {"model_id": "demo-stories", "strategy": CANARY})
    yield post("/unload", {CANARY: CANARY, "on_busy": CANARY})
    # Bodies that are no JSON, or not what JSON may be.
    for body in (CANARY, f'{{"prompt": "{CANARY}', f'{{"{CANARY}": 1, "{CANARY}": 2}}', f'{{"prompt": {CANARY}}}', f"[{CANARY}]"):
        yield post("/v1/completions", body.encode())
        yield post("/switch", body.encode())
    yield post("/v1/completions", b'{"prompt": "' + CANARY.encode() + b"\xff" + b'"}')
    yield post("/v1/completions", b"[" * 200 + CANARY.encode())
    data = f'{{"prompt": "{CANARY}", "max_tokens": 1}}'.encode()
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(data), data)
    chunked = head("POST", "/v1/completions", "Content-Type: application/json", "Transfer-Encoding: chunked")
    yield chunked + chunk + b"\r\n"


def broken_requests() -> Iterator[bytes]:
    """What ends the connection: bad heads, bad chunks, bodies that do not come."""
    line = CANARY.encode()
    yield line + b"\r\n\r\n"
    yield b"GET /" + line + b" HTTP/9.9\r\nHost: h\r\n\r\n"
    yield b"GET /?" + line + b"\r\nHost: h\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: h\r\n" + line + b" : x\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n " + line + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: " + line + b"\r\nHost: " + line + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: " + line + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: h\r\nX: " + line + b"\x00\r\n\r\n"
    yield b"GET /" + line * 2000 + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    json_type = "Content-Type: application/json"
    yield head("POST", "/switch", json_type, f"Expect: {CANARY}", "Content-Length: 2") + b"{}"
    yield head("POST", "/switch", json_type, f"Transfer-Encoding: {CANARY}") + line
    yield head("POST", "/switch", json_type, "Transfer-Encoding: chunked") + line + b"\r\n"
    yield (
        head("POST", "/switch", json_type, "Transfer-Encoding: chunked") + b"f;" + line + b"\r\n" + line + b"\r\n0\r\nX: " + line
    )
    yield head("POST", "/switch", json_type, "Transfer-Encoding: chunked") + b"3\r\n" + line
    yield head("POST", "/switch", json_type, "Content-Length: 500") + line
    yield head("POST", "/switch", json_type, "Content-Length: 99999999") + line


def send(daemon: Daemon, raw: bytes, *, whole: bool) -> None:
    """On a connection of its own, and read all that comes. What is not whole is followed by the end of the sending side."""
    with socket.create_connection((daemon.host, daemon.port), timeout=DEADLINE_S) as sock:
        sock.sendall(raw + (LAST if whole else b""))
        if not whole:
            sock.shutdown(socket.SHUT_WR)
        try:
            while sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            assert not whole


def test_none_of_ten_thousand_log_lines_has_a_canary(tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    config.write_text(config.read_text().replace("port: 0", "port: 0, log_level: debug"))
    env = {**os.environ, **kept_beside(config), "PYTHONPATH": str(ROOT), "MODELD_API_KEYS": f"ci admin {KEY}"}
    whole, broken = list(whole_requests()), list(broken_requests())
    # Quick ones many times, so that generations do not make it long; each kind several times in any case.
    quick = [raw for raw in whole if b"POST /v1" not in raw.split(b"\r\n")[0] or b'"model":' in raw]
    n_each = -(-N_LINES // (len(quick) * N_THREADS))
    with Daemon(config, command=(sys.executable, "-m", "modeld"), env=env) as daemon:
        daemon.wait_line(lambda line: line.get("msg") == "model ready")

        def work() -> None:
            for raw in whole:
                send(daemon, raw, whole=True)
            for raw in broken:
                send(daemon, raw, whole=False)
            for _ in range(n_each):
                send(daemon, b"".join(quick), whole=True)

        threads = [threading.Thread(target=work) for _ in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [json.dumps(line, ensure_ascii=False) for line in daemon.lines]
    requests = [line for line in daemon.lines if line.get("msg") == "request"]
    n_generated = sum(line.get("completion_tokens", 0) > 0 for line in requests)
    kinds = f"{len(whole)} whole and {len(broken)} broken kinds"
    print(f"{len(lines)} log lines, {len(requests)} requests of {kinds}, {n_generated} generated")
    assert len(lines) >= N_LINES
    assert n_generated >= 8 * N_THREADS
    statuses = {line["status"] for line in requests}
    assert statuses >= {200, 400, 401, 403, 404, 405, 413, 415, 431, 499}
    assert 500 not in statuses
    found = [line for line in lines for spelling in SPELLINGS if spelling.lower() in line.lower()]
    assert not found, found[:5]


def test_the_search_finds_each_spelling() -> None:
    """It could not fail if it looked for the wrong thing."""
    assert len({spelling.lower() for spelling in SPELLINGS}) == len(SPELLINGS)
    for raw in [*whole_requests(), *broken_requests()]:
        text = raw.decode("latin-1").lower()
        assert any(spelling.lower() in text for spelling in SPELLINGS), raw
