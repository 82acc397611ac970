"""`python -m bench`: measures and prints; `--write` keeps the figures in bench/results/. Models are made when missing."""

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

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    stamp = json.loads((HERE.parent / "build" / "libllama.stamp.json").read_text())
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "llama_commit": stamp["llama_commit"],
        "flags": stamp["flags"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(["python", "-m", "bench", *sys.argv[1:]]),
    }


def model(name: str) -> Path:
    """A benchmark model, made by its script if it is not there."""
    path = CACHE / f"{name}.gguf"
    if not path.is_file():
        subprocess.run([sys.executable, str(HERE / "make_model.py"), name], check=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("engine", "switch", "all"), default="all")
    parser.add_argument("--repeat", type=int, default=5, help="paired runs; medians are reported (default 5)")
    parser.add_argument("--model", default="q05", help="q05 (0.5B shape, random weights, Q4_0) or tiny")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a stream (default 64)")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    print(json.dumps(results["machine"]))
    if args.what in ("engine", "all"):
        from bench.inprocess import measure as measure_engine

        results["engine"] = measure_engine(model(args.model), (1, 4, 16), args.tokens, args.repeat)
        print(f"{'streams':>8} {'bare t/s':>10} {'engine t/s':>11} {'ratio':>7}   pairs")
        for row in results["engine"]:
            bare, engine = row["bare_tokens_per_s"], row["engine_tokens_per_s"]
            print(f"{row['streams']:>8} {bare:>10} {engine:>11} {row['ratio']:>7}   {row['ratios']}")
    if args.what in ("switch", "all"):
        from bench.switching import measure as measure_switch

        row = results["switch"] = measure_switch(model(args.model), args.repeat)
        print(f"switch {row['switch_s']} s, bare load {row['bare_load_s']} s, ratio {row['ratio']}   {row['ratios']}")
        print(f"steps, ms: {row['steps_ms']}")
    if args.write:
        path = HERE / "results" / f"{args.what}-{args.model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"written: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
