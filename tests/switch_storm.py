"""Many clients at once that do at random whatever can be done to a daemon's model, and what must be true of all of it."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.daemon import DEADLINE_S, MODELS, Daemon, Event, demo_config

N_CLIENTS = 8
ENDS = {"model_ready": "succeeded", "model_unloaded": "succeeded", "model_error": ""}
STEPS = ("unload", "mmap", "warmup")
NOT_NOW = {"model_loading", "model_switched", "no_model", "model_not_loaded", "queue_full"}
OP_ERRORS = {"op_cancelled", "model_load_failed"}
SHORT = ("demo-stories", "demo-calc", "third")


class Registry:
    """The configuration file that the clients rewrite: two models that stay, one that changes, and one that is broken."""

    def __init__(self, folder: Path, *, auto_switch: bool) -> None:
        raw = (MODELS / "demo-calc.gguf").read_bytes()
        (folder / "broken.gguf").write_bytes(raw[:300_000])
        (folder / "third.gguf").write_bytes(raw)  # a file of its own, so that it can be told in the daemon's memory
        self._folder = folder
        self._switching = f"auto_switch: {str(auto_switch).lower()}, auto_switch_min_stay_s: 0"
        self.path = self.write(4)

    def write(self, n_parallel: int) -> Path:
        """`n_parallel` of the third model. The file is replaced, so nobody reads half of it."""
        entries = (
            f"  - {{id: third, path: {self._folder}/third.gguf, n_ctx: 2048, n_threads: 1, n_parallel: {n_parallel}}}\n"
            f"  - {{id: broken, path: {self._folder}/broken.gguf}}\n"
            f"  - {{id: gone, path: {self._folder}/gone.gguf}}\n"
            "switching: {cooldown_failures: 0, watch_config: false, kv_keep_bytes: 4194304, "
            f"{self._switching}}}\n"
        )
        scratch = self._folder / "new"
        scratch.mkdir(exist_ok=True)
        path = demo_config(scratch, entries, one_thread=True)
        return path.rename(self._folder / "models.yaml")


class SwitchStorm:
    """`n_ops` by 8 clients; `run` blocks until all have ended. The same seed does the same in the same order of beginnings."""

    def __init__(self, daemon: Daemon, registry: Registry, seed: int, n_ops: int) -> None:
        self.ends: Counter[str] = Counter()
        self.failures: list[str] = []
        self.op_ids: list[str] = []  # of every op that was accepted
        self._daemon, self._registry, self._seed = daemon, registry, seed
        self._numbers = iter(range(n_ops))
        self._lock = threading.Lock()  # guards all above, and the configuration file

    def run(self) -> None:
        clients = [threading.Thread(target=self._client) for _ in range(N_CLIENTS)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + 4 * DEADLINE_S
        for client in clients:
            client.join(max(0.0, deadline - time.monotonic()))
            assert not client.is_alive(), f"a client hangs; {self._daemon.get('/status')}"

    def _client(self) -> None:
        doings: list[tuple[Callable[[random.Random], str], int]] = [
            (self._switch, 34), (self._cancel, 7), (self._unload, 4), (self._reload, 4), (self._stream, 16), (self._whole, 10),
            (self._embed, 3), (self._tokenize, 5), (self._look, 12),
        ]  # fmt: skip
        while not self.failures:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            r = random.Random(f"{self._seed}-{number}")
            [do] = r.choices([do for do, _ in doings], [weight for _, weight in doings])
            try:
                assert len(loaded := mapped(self._daemon)) <= 2, loaded
                end = f"{do.__name__[1:]}: {do(r)}"
                with self._lock:
                    self.ends[end] += 1
            except Exception:  # noqa: BLE001 - it is told with what led to it
                with self._lock:
                    self.failures.append(f"{do.__name__} {number} of seed {self._seed}\n{traceback.format_exc()}")

    # -- what a client does; each answers how it ended

    def _switch(self, r: random.Random) -> str:
        body: dict[str, Any] = {"model_id": r.choice((*SHORT, *SHORT, *SHORT, "broken", "gone"))}
        choices = {
            "on_inflight": ("cancel", "drain"),
            "drain_timeout_s": (0, 0.05, 5),
            "on_busy": ("queue", "queue", "queue", "queue", "queue", "queue", "reject", "supersede"),
            "on_failure": ("rollback", "error"),
            "strategy": ("replace", "overlap", "auto"),
            "force": (False, True),
            "dry_run": (False, False, False, True),
        }
        body |= {name: r.choice(values) for name, values in choices.items() if r.random() < 0.6}
        query = r.choice(("", "?wait=0", "?wait=0.05", *("?wait=30",) * 5))
        fields = {}
        if r.random() < 0.15:
            known = self._daemon.request("GET", "/status")[1]["etag"]
            fields = {"If-Match": r.choice((known, known, '"0"'))}
        status, _, answer = self._daemon.request("POST", f"/switch{query}", body, fields)
        if body.get("dry_run"):
            assert status == 200, answer
            assert answer["dry_run"] is True, answer
            return "foreseen"
        return self._accepted(status, answer, bool(query))

    def _unload(self, r: random.Random) -> str:
        query = r.choice(("", "?wait=30"))
        status, _, answer = self._daemon.request("POST", f"/unload{query}", {"on_inflight": r.choice(("cancel", "drain"))})
        return self._accepted(status, answer, bool(query))

    def _accepted(self, status: int, answer: dict[str, Any], waited: bool) -> str:
        if "op_id" not in answer:
            code = str(answer["error"]["code"])
            assert (status, code) in {(409, "switch_rejected"), (412, "generation_mismatch")}, answer
            return code
        with self._lock:
            if not answer.get("joined"):
                self.op_ids.append(answer["op_id"])
        if not waited:
            assert (status, answer["state"]) == (202, "queued") or answer.get("joined"), answer
            return "accepted"
        if answer["state"] in ("queued", "running"):
            assert (status, answer["ended_at"]) == (202, None), answer
            return "goes on"
        if answer["state"] == "succeeded":
            assert (status, answer["error"]) == (200, None), answer
        else:
            assert answer["error"]["code"] in OP_ERRORS, answer
            assert status == (409 if answer["state"] == "cancelled" else 500), answer
        return str(answer["state"])

    def _cancel(self, r: random.Random) -> str:
        with self._lock:
            op_id = r.choice(self.op_ids[-4:]) if self.op_ids else "op-none"
        status, _, answer = self._daemon.request("DELETE", f"/ops/{op_id}")
        if status == 200:
            assert (answer["state"], answer["error"]["code"]) == ("cancelled", "op_cancelled"), answer
        elif status == 202:
            assert answer["cancelling"] is True, answer
        else:
            assert (status, answer["error"]["code"]) in {(409, "op_ended"), (404, "not_found")}, answer
        return str(status)

    def _reload(self, r: random.Random) -> str:
        with self._lock:
            self._registry.write(r.choice((2, 4, 8)))
            status, _, answer = self._daemon.request("POST", "/reload", {})
        assert status == 200, answer
        assert answer["altered"] in ([], ["third"]), answer
        return "changed" if answer["changed"] else "unchanged"

    def _generation(self, r: random.Random) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": r.choice(("One day", "12+30=")),
            "max_tokens": r.choice((1, 20, 200)),
            "ignore_eos": True,
        }
        if r.random() < 0.3:
            body["model"] = r.choice(SHORT)
        if r.random() < 0.2:
            body["n"] = 2
        return body

    def _whole(self, r: random.Random) -> str:
        body = self._generation(r)
        status, fields, answer = self._daemon.request("POST", "/v1/completions", body)
        if status == 200:
            assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * body.get("n", 1), answer
            assert body.get("model") in (None, answer["model"]), answer
            assert fields["x-model-id"] == answer["model"]
            return "whole"
        return self._refused(status, answer)

    def _stream(self, r: random.Random) -> str:
        body = self._generation(r)
        with self._daemon.stream("/v1/completions", body) as stream:
            if stream.response.status != 200:
                return self._refused(stream.response.status, json.loads(stream.response.read()))
            if r.random() < 0.2:
                next(iter(stream), None)
                return "left"
            for _ in stream:
                pass
        if stream.done:
            reasons = [choice["finish_reason"] for frame in stream.frames for choice in frame["choices"]]
            assert [reason for reason in reasons if reason] == ["length"] * body.get("n", 1), stream.frames[-3:]
            return "done"
        assert stream.frames[-1]["error"]["code"] == "model_switched", stream.frames[-1:]
        assert sum("error" in frame for frame in stream.frames) == 1
        return "cut"

    def _refused(self, status: int, answer: dict[str, Any]) -> str:
        code = str(answer["error"]["code"])
        assert code in NOT_NOW, answer
        assert status == {"model_not_loaded": 409, "queue_full": 429}.get(code, 503), answer
        return code

    def _embed(self, _: random.Random) -> str:
        status, _fields, answer = self._daemon.request("POST", "/v1/embeddings", {"input": "One day"})
        return "refused" if status == 400 else self._refused(status, answer)

    def _tokenize(self, r: random.Random) -> str:
        status, _, answer = self._daemon.request("POST", "/tokenize", {"content": r.choice(("", "One day"))})
        return "tokens" if status == 200 and isinstance(answer["tokens"], list) else self._refused(status, answer)

    def _look(self, r: random.Random) -> str:
        path = r.choice(("/status", "/ops?limit=5", "/models", "/readyz", "/livez", "/health", "/v1/models"))
        status, _, answer = self._daemon.request("GET", path)
        assert status in (200, 503), answer
        if path == "/status":
            check_status(answer)
        return path


def mapped(daemon: Daemon) -> set[str]:
    """The model files that the daemon has in its memory: of a switch both, for a moment; never three."""
    lines = Path(f"/proc/{daemon.process.pid}/maps").read_text().splitlines()
    return {line.rsplit("/", 1)[1] for line in lines if line.endswith(".gguf")}


def check_status(status: dict[str, Any]) -> None:
    """What holds at every moment."""
    is_empty = status["current_model"] is None
    assert is_empty == (status["state"] != "ready") or (is_empty and status["auto_switch"]), status
    assert status["state"] in ("ready", "loading", "error"), status
    if status["state"] == "error":
        assert status["error"] is not None, status
    if status["op"] is not None:
        assert status["op"]["state"] == "running", status
        if status["op"]["strategy"] == "replace":
            # The one that an overlap before has replaced goes before anything is loaded.
            assert status["retiring_model"] is None or status["op"]["step"] not in ("mmap", "warmup"), status


class Watcher:
    """Reads all events, and asks /readyz at each model_ready."""

    def __init__(self, daemon: Daemon) -> None:
        self.failures: list[str] = []
        self._daemon = daemon
        self._events = daemon.events()
        self._closing = False
        next(iter(self._events))  # the snapshot
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._events:
                if event.name == "model_ready":
                    self._check_ready(event)
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            if not self._closing:
                self.failures.append(traceback.format_exc())
        except Exception:  # noqa: BLE001 - it is told
            self.failures.append(traceback.format_exc())

    def _check_ready(self, event: Event) -> None:
        if self._daemon.request("GET", "/readyz")[0] == 200:
            return
        status = self._daemon.get("/status")
        others = (status["op"], status["last_op"])
        assert any(op is not None and op["op_id"] != event.data["op_id"] for op in others), (event, status)

    def end(self) -> list[Event]:
        """All events, once the daemon has ended."""
        self._closing = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._events.close()
        assert not self.failures, self.failures[0]
        return self._events.seen


def check_events(events: list[Event], op_ids: list[str]) -> Counter[str]:
    """Every op has one end, its events rise, and no two of them run at once. Counts the ends."""
    by_op: dict[str, list[Event]] = defaultdict(list)
    running: str | None = None
    numbers = [int(event.id.rsplit("-", 1)[1]) for event in events]
    assert numbers == sorted(set(numbers))
    for event in events:
        op_id = event.data.get("op_id")
        if op_id is None:
            assert event.name in ("model_unloaded", "config_reloaded", "snapshot", "shutdown"), event
            continue
        mine = by_op[op_id]
        assert not any(before.name in ENDS for before in mine), (event, mine)
        if event.name == "model_switch_started":
            assert running is None, f"{op_id} starts while {running} runs"
            running = op_id
        elif running != op_id:
            assert (event.name, event.data["code"], mine) == ("model_error", "op_cancelled", []), (event, running)
        mine.append(event)
        if event.name in ENDS and running == op_id:
            running = None
    ends: Counter[str] = Counter()
    for op_id, mine in by_op.items():
        assert mine[-1].name in ENDS, f"{op_id} has no end: {mine}"
        ends[str(mine[-1].data.get("code", mine[-1].name))] += 1
        progress = [(STEPS.index(e.data["step"]), e.data["pct"]) for e in mine if e.name == "model_loading_progress"]
        assert progress == sorted(set(progress)), mine
        if mine[-1].name == "model_ready":
            promised = next(e.data["steps"] for e in mine if e.name == "model_switch_started")
            assert [STEPS[step] for step, pct in progress if pct == 100] == promised, mine
    assert set(op_ids) <= by_op.keys(), "ops without any event"
    return ends
