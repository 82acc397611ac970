"""What does a switch cost? From asking for it to the first token of the next answer: modeld, llama-server's router, a bare load.

The router switches when a request names its other model; modeld is told by `POST /switch?wait=`, and asked when that is
answered. Bare is one process and no server: free the old model, load the other one, make its context, decode one token. All
three have the same two files in the page cache, with the same settings, and had each of them loaded before.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load
from bench.bare import Bare
from bench.inprocess import on_thread
from bench.make_model import make
from bench.servers import DEADLINE_S, Server, Settings, said
from modeld.types import ModelSpec

N_CTX, N_PARALLEL = 8192, 8
N_TOKENS = 8
GREEDY: dict[str, Any] = {
    "temperature": 0,
    "ignore_eos": False,
}  # ignore_eos has a price of its own with the first request to a new model
ALWAYS_THE: dict[str, Any] = {
    "logit_bias": [[279, 100]]
}  # " the" in q05's vocabulary: each token is whole text, so none hides in the next


@dataclass(frozen=True, slots=True)
class Answered:
    """Seconds since the switch was asked for."""

    first_s: float
    end_s: float
    ready_s: float | None = None  # modeld: the op had ended
    steps_ms: dict[str, float] | None = None


def two_models() -> tuple[Path, Path]:
    return make("q05"), make("q05", seed=2)


def settings_of(models: tuple[Path, Path], *, n_parallel: int = N_PARALLEL, switching: str = "") -> Settings:
    return Settings(models[0], N_CTX, n_parallel, second=models[1], switching=switching)


def call(address: str, method: str, path: str, body: object = None) -> Any:
    """The body of a 2xx answer. Raises RequestFailed."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status // 100 != 2:
        raise load.RequestFailed(f"{method} {path}: {response.status} {text.decode(errors='replace')[:500]}")
    return json.loads(text)


def switch_and_ask(server: Server, model: str, prompt: str, **extra: Any) -> tuple[Answered, load.Completion]:
    """Have `model` loaded instead of the other one and let it answer."""
    request = load.Completion(prompt, N_TOKENS, model=model, **{**GREEDY, **extra})
    ready_s = steps_ms = None
    start = time.perf_counter()
    if server.name == "modeld":
        op = call(server.address, "POST", "/switch?wait=60", {"model_id": model})
        ready_s, steps_ms = time.perf_counter() - start, op["steps_ms"]
    load.run(server.address, [request])
    return Answered(request.frame_times[0] - start, request.ended - start, ready_s, steps_ms), request


class BareSwitches:
    """A model held by this process, given up for another one when told so; on a fresh thread, since a decode binds it."""

    def __init__(self) -> None:
        self._held: Bare | None = None

    def switch(self, spec: ModelSpec) -> float:
        """Seconds."""
        return on_thread(lambda: self._switch(spec))

    def _switch(self, spec: ModelSpec) -> float:
        start = time.perf_counter()
        self.close()
        self._held = Bare(spec)
        self._held.decode_one()
        return time.perf_counter() - start

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


def spec_of(model: Path) -> ModelSpec:
    return ModelSpec(id=model.stem, path=model, n_ctx=N_CTX, n_parallel=N_PARALLEL)


def start_servers(stack: ExitStack, settings: Settings, folder: Path, names: tuple[str, ...] = ("modeld", "B")) -> list[Server]:
    """Running and stopped; each has loaded and vouched for both models, and holds the first one."""
    servers: list[Server] = []
    for name in names:
        (own := folder / f"{len(servers)}-{name}").mkdir()
        server = stack.enter_context(Server(name, settings, own))
        for model in (*settings.models, *settings.models, settings.models[0]):
            switch_and_ask(server, model.stem, "Once upon a time")
        server.pause()
        servers.append(server)
    return servers


def in_turn(i: int, names: Sequence[str]) -> list[str]:
    """The order of round `i`: who comes first changes, and so does the direction."""
    turned = [*names[i // 2 % len(names) :], *names[: i // 2 % len(names)]]
    return turned[::-1] if i % 2 else turned


def measure(repeat: int) -> dict[str, Any]:
    """`repeat` times one switch of each, in turn; medians, and medians of the ratios within each round."""
    models = two_models()
    rounds: list[dict[str, float]] = []
    steps: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {server.name: server for server in start_servers(stack, settings_of(models), Path(folder))}
        bare = BareSwitches()
        stack.callback(bare.close)
        for model in (*models, models[0]):
            bare.switch(spec_of(model))
        rng = random.Random(0)
        for i in range(repeat):
            target, prompt = models[(i + 1) % 2], load.words(rng, 1)
            found: dict[str, float] = {}
            for rival in in_turn(i, (*servers, "bare")):
                if rival == "bare":
                    found["bare_s"] = bare.switch(spec_of(target))
                    continue
                servers[rival].resume()
                took, _ = switch_and_ask(servers[rival], target.stem, prompt, **ALWAYS_THE)
                servers[rival].rest()
                servers[rival].pause()
                found[f"{rival}_s"] = took.first_s
                if took.ready_s is not None and took.steps_ms is not None:
                    found["modeld_ready_s"] = took.ready_s
                    steps.append(took.steps_ms)
            rounds.append(found)
        commands = {server.name: said(server.command) for server in servers.values()}
    ratios = {peer: [round(each["modeld_s"] / each[f"{peer}_s"], 3) for each in rounds] for peer in ("B", "bare")}
    return {
        **{figure: round(statistics.median(each[figure] for each in rounds), 4) for figure in rounds[0]},
        "ratio": {peer: round(statistics.median(values), 3) for peer, values in ratios.items()},
        "ratios": ratios,
        "steps_ms": {step: round(statistics.median(s[step] for s in steps if step in s), 1) for step in steps[0]},
        "rounds": [{figure: round(value, 4) for figure, value in each.items()} for each in rounds],
        "commands": commands,
    }
