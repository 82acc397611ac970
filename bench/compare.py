"""Which server is faster? The works W1 to W4, W7 and W8 of both, in turn, with the same load; medians of paired ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import load, peers
from bench.make_model import make
from bench.servers import Server, Settings, said

Run = Callable[[Server, int], load.Result]


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the numbers that a run gives."""

    key: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table: what is run on each server, and what is looked at. `run` takes a server and a seed."""

    title: str
    run: Run
    figures: tuple[Figure, ...]
    neighbour: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Works that share the servers' settings."""

    model: str
    n_ctx: int
    n_parallel: int
    works: tuple[Work, ...]


RATE = Figure("tokens_per_s", "tokens/s", more_is_better=True)
GAP_P99 = Figure("gap_p99_ms", "ms")
TTFT = Figure("ttft_median_ms", "ms")


def stream(n: int, tokens: int, *figures: Figure, neighbour: bool = False, name: str = "") -> Work:
    def run(server: Server, seed: int) -> load.Result:
        return load.stream(server.address, streams=n, tokens=tokens, seed=seed)

    return Work(f"{name}{n} x {tokens}", run, (RATE, *figures), neighbour)


def holes(*kept: int) -> Work:
    title = f"slots {','.join(map(str, kept))}"
    return Work(title, lambda server, seed: load.holes(server.address, seed=seed, kept=kept), (RATE,))


def memory(server: Server, seed: int) -> load.Result:
    load.stall(server.address, n_words=1500, seed=seed)
    return server.memory_mb()


def groups(name: str, quick: bool) -> tuple[Group, ...]:
    """The works by their names in figures.md; `quick` takes fewer and shorter ones."""
    tokens = 32 if quick else 64
    some = (4, 16) if quick else (1, 4, 8, 16)
    if name == "w1":
        works = (stream(n, tokens, *((TTFT, GAP_P99) if n == 16 else ())) for n in some)
        return (Group("q05", 8192, 16, tuple(works)),)
    if name == "w1-odd":
        return (Group("q05", 8192, 16, tuple(stream(n, tokens) for n in ((7, 15) if quick else (3, 6, 7, 11, 15)))),)
    if name == "w1-holes":
        return (Group("q05", 8192, 16, (holes(0, 1, 2, 3), holes(0, 2, 5, 7))),)
    if name == "w2":
        return (Group("tiny", 8192, 16, (stream(16, 128 if quick else 256, TTFT, GAP_P99),)),)
    if name == "w3":
        shared = Figure("cold_s", "s"), Figure("warm_s", "s")
        work = Work("8 share 600 words", lambda s, seed: load.prefix(s.address, streams=8, n_words=600, seed=seed), shared)
        return (Group("q05", 16384, 8, (work,)),)
    if name == "w4":
        return (Group("q05", 8192, 16, tuple(stream(n, tokens // 2, neighbour=True, name="busy, ") for n in (1, 4, 16))),)
    if name == "w7":
        figures = Figure("gap_max_ms", "ms"), Figure("gap_p99_ms", "ms"), Figure("late_ttft_ms", "ms")
        work = Work("3 run, 1500 words", lambda s, seed: load.stall(s.address, n_words=1500, seed=seed), figures)
        return (Group("q05", 16384, 4, (work,)),)
    if name == "w8":
        return (Group("q05", 16384, 4, (Work("memory", memory, (Figure("rss_mb", "MB"), Figure("anonymous_mb", "MB"))),)),)
    raise ValueError(name)


NAMES = ("w1", "w1-odd", "w1-holes", "w2", "w3", "w4", "w7", "w8")


@contextmanager
def busy_neighbour(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def measure(names: list[str], repeat: int, *, quick: bool) -> dict[str, Any]:
    """Rows with medians and paired ratios, and the command lines."""
    rows: list[dict[str, Any]] = []
    commands: dict[str, dict[str, str]] = {}
    rivals = ("modeld", *peers.names())
    for name in names:
        for group in groups(name, quick):
            settings = Settings(make(group.model), group.n_ctx, group.n_parallel)
            with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
                servers = []
                for rival in rivals:
                    servers.append(running.enter_context(Server(rival, settings, Path(folder))))
                    load.stream(servers[-1].address, streams=2, tokens=16, seed=0)  # what is paid once is not measured
                    servers[-1].pause()
                commands[name] = {s.name: said(s.command) for s in servers}
                for work in group.works:
                    found = take(work, servers, repeat, first_seed=1 + len(rows) * 100)
                    for row in rows_of(name, group, work, found):
                        rows.append(row)
                        print_row(row)
    return {"commands": commands, "rows": rows}


def take(work: Work, servers: list[Server], repeat: int, *, first_seed: int) -> list[dict[str, load.Result]]:
    """`repeat` times each server alone, the others stopped; who comes first alternates; each time fresh prompts."""
    found = []
    for i in range(repeat):
        pair: dict[str, load.Result] = {}
        for server in servers if i % 2 == 0 else reversed(servers):
            server.resume()
            with busy_neighbour(work.neighbour):
                pair[server.name] = work.run(server, first_seed + i)
            server.pause()
        found.append(pair)
    return found


def rows_of(name: str, group: Group, work: Work, found: list[dict[str, load.Result]]) -> Iterator[dict[str, Any]]:
    for figure in work.figures:
        row: dict[str, Any] = {"work": name, "model": group.model, "title": work.title, "figure": figure.key, "unit": figure.unit}
        row["medians"] = {rival: significant(statistics.median(pair[rival][figure.key] for pair in found)) for rival in found[0]}
        row["values"] = {rival: [significant(pair[rival][figure.key]) for pair in found] for rival in found[0]}
        row["ratios"] = {}
        for peer in [rival for rival in found[0] if rival != "modeld"]:
            ratio = partial(gain, figure, peer)
            row["ratios"][peer] = [round(ratio(pair), 3) for pair in found]
        row["ratio"] = {peer: round(statistics.median(ratios), 3) for peer, ratios in row["ratios"].items()}
        row["runs"] = found if figure is work.figures[0] else []
        yield row


def gain(figure: Figure, peer: str, pair: dict[str, load.Result]) -> float:
    """How many times as good modeld is; above 1 it wins, whichever way the figure points."""
    ours, theirs = pair["modeld"][figure.key], pair[peer][figure.key]
    return float(ours / theirs if figure.more_is_better else theirs / ours)


def significant(value: float) -> float:
    return float(f"{value:.4g}")


HEAD = f"{'work':<9} {'model':<5} {'what':<19} {'figure':<15} {'modeld':>8} {'B':>8} {'gain':>6}   gain in each pair"


def print_row(row: dict[str, Any]) -> None:
    medians = row["medians"]
    line = (
        f"{row['work']:<9} {row['model']:<5} {row['title']:<19} {row['figure']:<15} {medians['modeld']:>8g} {medians['B']:>8g} "
    )
    line += f"{row['ratio']['B']:>6.2f}   {' '.join(f'{r:.2f}' for r in row['ratios']['B'])}"
    if "A" in medians:
        line += f"   A: {medians['A']:g}, gain {row['ratio']['A']:.2f}"
    print(line, flush=True)


def limit(model: Path) -> list[dict[str, Any]]:
    """What the library can do: llama-batched-bench of peer B, prompts of 60 tokens, 64 generated."""
    command = [peers.program("B", "llama-batched-bench"), "-m", model, "-c", "8192", "-b", "2048", "-ub", "512"]
    command += ["-npp", "60", "-ntg", "64", "-npl", "1,4,8,16", "--output-format", "jsonl"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [
        {
            "model": model.stem,
            "streams": row["pl"],
            "generation_per_s": round(row["speed_tg"], 1),
            "whole_per_s": round(row["pl"] * row["tg"] / row["t"], 1),
        }
        for row in rows
    ]
