"""How long does nobody answer while a model is replaced whose file is cold? With and without reading it ahead.

One client streams all the time and, when it is cut or refused, tries again every 10 ms: from the last token of the old model to
the first one of the new, and from `POST /switch` to the latter. The file's pages are dropped before (posix_fadvise, and what is
left is said), so what it takes to read them is the disk's affair, and that of the host's cache where this is a virtual machine.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import load
from bench.servers import Server, said
from bench.switching import ALWAYS_THE, GREEDY, call, in_turn, settings_of, start_servers, two_models
from modeld.llm.readahead import cached_bytes

RETRY_S = 0.01
BEFORE_S = 1.0
N_TOKENS = 400
PREFETCH = {"on": "", "off": "{prefetch: false}"}


class Client:
    """Streams, and tries again at once, until stop(). `arrivals` in order: when, and the model whose token came."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self.arrivals: list[tuple[float, str]] = []
        self.refused = 0

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        while not self._stop.is_set():
            request = load.Completion("Once upon a time", N_TOKENS, **GREEDY, **ALWAYS_THE)
            with request.connect(self._address) as sock:
                while request.receive(sock) and not self._stop.is_set():
                    pass
            if not self._take(request):
                self.refused += 1
                time.sleep(RETRY_S)

    def _take(self, request: load.Completion) -> bool:
        """Keep its tokens; False: it was refused."""
        rest, found = b"", False
        for when, data in request.arrivals:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                frame = json.loads(line[6:]) if line.startswith(b"data: {") else {}
                if any(choice["text"] for choice in frame.get("choices", ())):
                    self.arrivals.append((when, frame["model"]))
                    found = True
        return found


def make_cold(path: Path) -> float:
    """The share that is in the page cache still. Nobody may have the file mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_bytes(path) / path.stat().st_size


def one_outage(server: Server, old: Path, new: Path) -> dict[str, Any]:
    """Replace `old` by `new`, then go back."""
    server.resume()
    try:
        left = make_cold(new)
        client = Client(server.address)
        thread = threading.Thread(target=client.run)
        thread.start()
        try:
            time.sleep(BEFORE_S)
            begin = time.perf_counter()
            op = call(server.address, "POST", "/switch?wait=120", {"model_id": new.stem})
            ready = time.perf_counter()
            time.sleep(BEFORE_S)
        finally:
            client.stop()
            thread.join()
        call(server.address, "POST", "/switch?wait=120", {"model_id": old.stem})
        server.rest()  # it lets go of the file
    finally:
        server.pause()
    last_old = max(when for when, model in client.arrivals if model == old.stem)
    first_new = min(when for when, model in client.arrivals if model == new.stem)
    return {
        "outage_s": first_new - last_old,
        "first_new_s": first_new - begin,
        "ready_s": ready - begin,
        "cached_share": left,
        "refused": client.refused,
        "steps_ms": op["steps_ms"],
    }


def measure(repeat: int) -> dict[str, Any]:
    old, new = two_models()
    rounds = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        for name, switching in PREFETCH.items():
            (own := Path(folder) / name).mkdir()
            (servers[name],) = start_servers(stack, settings_of((old, new), switching=switching), own, ("modeld",))
        for i in range(repeat):
            found = {name: one_outage(servers[name], old, new) for name in in_turn(i, list(servers))}
            rounds.append(found)
            print(
                {name: {k: round(v, 3) for k, v in row.items() if isinstance(v, float)} for name, row in found.items()},
                flush=True,
            )
        commands = {name: said(server.command) for name, server in servers.items()}
    figures = ("outage_s", "first_new_s", "ready_s", "cached_share")
    return {
        "read_ahead": {
            name: {figure: round(statistics.median(each[name][figure] for each in rounds), 3) for figure in figures}
            for name in PREFETCH
        },
        "rounds": rounds,
        "commands": commands,
    }
