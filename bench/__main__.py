"""`python -m bench`: measures and prints; `--write` keeps the figures in bench/results/. Models and peers are made when missing.

engine              in one process: the engine against a bare loop
switch              from POST /switch to the next first token, against llama-server's router and a bare load (W5)
conversation        its next answer after a switch away and back, against llama-server's router (W6)
overlap             gaps and failures of 8 streams while the next model is loaded beside
outage              how long nobody answers while a cold file is loaded, with and without reading it ahead
disconnect          how soon the slot of a client that leaves is free, and whether the others lose something
queue               what requests cost that wait for a slot: the others' throughput, memory
curve               what max_step_ms chooses between: gaps in running streams, first token of a late prompt
together            two models that generate at once, in turns and each on its own pool, against one at a time
kv                  a KV stream for each slot against one cache for all
w1 ... w8           modeld against llama-server (the works of docs/benchmarks.md); servers: all of them
limit               llama-batched-bench: what the library can do
peers               only builds llama-server and llama-batched-bench
all                 everything
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import compare, peers
from bench.chart import chart, curve
from bench.make_model import make

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
QUICK_REPEAT, REPEAT = 2, 5
DISCONNECTS = 10  # of each kind
CURVE_REPEAT = 3
SWITCHES = 10
ON_TWO_MODELS = ("switch", "conversation", "overlap", "outage")


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    stamp = json.loads((HERE.parent / "build" / "libllama.stamp.json").read_text())
    autogroup = Path("/proc/self/autogroup")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "autogroup": autogroup.read_text().strip() if autogroup.exists() else None,
        "python": platform.python_version(),
        "modeld_commit": modeld_commit(),
        "llama_commit": stamp["llama_commit"],
        "flags": stamp["flags"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(["python", "-m", "bench", *sys.argv[1:]]),
    }


def modeld_commit() -> str:
    """What is measured; `+` says that modeld/ was changed since."""
    git = ["git", "-C", os.fspath(HERE.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return "unknown"
    clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "modeld"], check=False).returncode == 0
    return commit.stdout.strip() + ("" if clean else "+")


def keep(name: str, text: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text)
    print(f"written: {(RESULTS / name).relative_to(HERE.parent)}")


def repeats(args: argparse.Namespace, usual: int = REPEAT) -> int:
    return int(args.repeat or (QUICK_REPEAT if args.quick else usual))


def measure_engine(args: argparse.Namespace) -> list[dict[str, Any]]:
    from bench.inprocess import measure

    found = measure(make(args.model), (1, 4, 16), args.tokens, repeats(args))
    print(f"{'streams':>8} {'bare t/s':>10} {'engine t/s':>11} {'ratio':>7}   pairs")
    for row in found:
        bare, engine = row["bare_tokens_per_s"], row["engine_tokens_per_s"]
        print(f"{row['streams']:>8} {bare:>10} {engine:>11} {row['ratio']:>7}   {row['ratios']}")
    return found


def measure_switch(args: argparse.Namespace) -> dict[str, Any]:
    from bench.switching import measure

    row = measure(repeats(args, SWITCHES))
    print("first token, s: " + ", ".join(f"{rival} {row[f'{rival}_s']}" for rival in ("modeld", "B", "bare")))
    print("\n".join(f"modeld / {peer}: {row['ratio'][peer]}   {row['ratios'][peer]}" for peer in row["ratio"]))
    print(f"modeld was ready after {row['modeld_ready_s']} s; steps, ms: {row['steps_ms']}")
    return row


def measure_conversation(args: argparse.Namespace) -> dict[str, Any]:
    from bench.conversation import measure

    rows = {flash_attn: measure(repeats(args), flash_attn) for flash_attn in ("auto", "off")}
    for flash_attn, row in rows.items():
        for figure in ("first_s", "end_s"):
            ours, theirs = row[f"modeld_{figure}"], row[f"B_{figure}"]
            ratios = f"ratio {row['ratio'][figure]}   {row['ratios'][figure]}"
            print(f"flash_attn {flash_attn}, {figure}: modeld {ours}, B {theirs}, {ratios}")
        print(f"answers as without a switch: {row['same_as_uninterrupted']} of {len(row['rounds'])}")
    return rows


def measure_overlap(args: argparse.Namespace) -> dict[str, Any]:
    from bench.overlap import measure

    row = measure(repeats(args))
    print(f"failed {row['failed']}; step {row['step_ms']} ms, longest gap {row['longest_gap_ms']} of {row['allowed_ms']} ms")
    return row


def measure_outage(args: argparse.Namespace) -> dict[str, Any]:
    from bench.outage import measure

    row = measure(repeats(args))
    for name, figures in row["read_ahead"].items():
        print(f"read-ahead {name}: " + ", ".join(f"{figure} {value}" for figure, value in figures.items()))
    return row


def measure_disconnect(args: argparse.Namespace) -> dict[str, Any]:
    from bench.disconnect import measure

    return measure(make("q05"), repeats(args, DISCONNECTS))


def measure_kv(args: argparse.Namespace) -> list[dict[str, Any]]:
    from bench.kv import measure

    found = measure(make(args.model), repeats(args))
    print(f"{'streams':>8} {'prompt':>7} {'separate t/s':>13} {'unified t/s':>12} {'ratio':>7}")
    for row in found:
        print(f"{row['streams']:>8} {row['prompt']:>7} {row['separate_per_s']:>13} {row['unified_per_s']:>12} {row['ratio']:>7}")
    return found


def measure_together(args: argparse.Namespace) -> list[dict[str, Any]]:
    from bench.together import measure

    found = measure(make(args.model), args.tokens, repeats(args))
    print(f"{'streams':>8} {'alone t/s':>10} {'in turns t/s':>13} {'ratio':>7} {'separate t/s':>13} {'ratio':>7}")
    for row in found:
        in_turns = f"{row['in_turns_per_s']:>13} {row['in_turns_ratio']:>7}"
        print(f"{row['streams']:>8} {row['alone_per_s']:>10} {in_turns} {row['separate_per_s']:>13} {row['separate_ratio']:>7}")
    return found


def measure_queue(args: argparse.Namespace) -> dict[str, Any]:
    from bench.waiting import measure

    return measure(repeats(args))


def measure_curve(args: argparse.Namespace) -> list[dict[str, Any]]:
    from bench.curve import measure

    return measure(make("q05"), repeats(args, CURVE_REPEAT))


def measure_limit() -> list[dict[str, Any]]:
    rows = [row for name in ("q05", "tiny") for row in compare.limit(make(name))]
    for row in rows:
        generation, whole = row["generation_per_s"], row["whole_per_s"]
        print(f"{row['model']:<5} {row['streams']:>3} streams: generation {generation} tokens/s, with prompts {whole}")
    return rows


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = (
        "engine",
        *ON_TWO_MODELS,
        "together",
        "kv",
        "disconnect",
        "queue",
        "curve",
        *compare.NAMES,
        "servers",
        "limit",
        "peers",
        "all",
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(choices)} (default: all)")
    parser.add_argument(
        "--repeat",
        type=int,
        help=f"runs of each kind (default {REPEAT}, disconnect {DISCONNECTS}, switch {SWITCHES}, curve {CURVE_REPEAT}, "
        f"quick {QUICK_REPEAT})",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: some minutes for all")
    parser.add_argument("--model", default="q05", help="for engine and kv: q05 (0.5B shape, random weights, Q4_0) or tiny")
    parser.add_argument("--tokens", type=int, default=64, help="for engine: tokens a stream (default 64)")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    what = set(args.what or ["all"])
    if unknown := what - set(choices):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there is {', '.join(choices)}")
    if "all" in what:
        what.update(choices)
    if "servers" in what:
        what.update(compare.NAMES)

    about = machine()
    print(json.dumps(about))
    if "engine" in what:
        found = {"machine": about, "engine": measure_engine(args)}
        if args.write:
            keep(f"engine-{args.model}.json", json.dumps(found, indent=1) + "\n")
    on_two_models = (measure_switch, measure_conversation, measure_overlap, measure_outage)
    for name, measure in zip(ON_TWO_MODELS, on_two_models, strict=True):
        if name in what:
            found = {"machine": about, name: measure(args)}
            if args.write:
                keep(f"{name}.json", json.dumps(found, indent=1) + "\n")
    if "together" in what:
        found = {"machine": about, "together": measure_together(args)}
        if args.write:
            keep(f"together-{args.model}.json", json.dumps(found, indent=1) + "\n")
    if "kv" in what:
        found = {"machine": about, "kv": measure_kv(args)}
        if args.write:
            keep("kv.json", json.dumps(found, indent=1) + "\n")
    if "disconnect" in what:
        found = {"machine": about, "disconnect": measure_disconnect(args)}
        if args.write:
            keep("disconnect.json", json.dumps(found, indent=1) + "\n")
    if "queue" in what:
        found = {"machine": about, "queue": measure_queue(args)}
        if args.write:
            keep("queue.json", json.dumps(found, indent=1) + "\n")
    if "curve" in what:
        rows = measure_curve(args)
        if args.write:
            keep("curve.json", json.dumps({"machine": about, "curve": rows}, indent=1) + "\n")
            keep("curve.svg", curve(rows, "max_step_ms: longest gap / late first token, q05, 3 streams, 1500 words"))
    wanted = [name for name in compare.NAMES if name in what]
    if wanted or what & {"peers", "limit"}:
        peers.build_all()
    if "limit" in what:
        found = {"machine": about, "limit": measure_limit()}
        if args.write:
            keep("limit.json", json.dumps(found, indent=1) + "\n")
    if wanted:
        print(compare.HEAD)
        compared = {"machine": about, **compare.measure(wanted, repeats(args), quick=args.quick)}
        if args.write:
            name = "servers" if len(wanted) == len(compare.NAMES) else "-".join(wanted)
            keep(f"{name}.json", json.dumps(compared, indent=1) + "\n")
            keep(
                f"{name}.svg",
                chart(compared["rows"], f"modeld {about['modeld_commit']} against llama-server: how many times as good"),
            )


if __name__ == "__main__":
    main()
