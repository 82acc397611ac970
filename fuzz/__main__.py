"""`python -m fuzz [--seconds 60] [NAME...]`: fuzzes each target under atheris, one after the other, and prints what was reached.

Exit status 1 where an input broke a target; the input is kept in build/fuzz/NAME/ and its path printed. With --keep, what runs
have found becomes the kept corpus, as few and as small files as reach the same; `NAME --try FILE` checks one input.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path

from fuzz import target

ROOT = target.HERE.parent
WORK = ROOT / "build" / "fuzz"
MAX_INPUT_S = 30  # by the clock, for what hangs; target.run has the bound on computing
MAX_RSS_MB = 1024
_DONE = re.compile(r"DONE +cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)")


class Campaign:
    """The folders and processes of one target."""

    def __init__(self, name: str, work: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.target = target.named(name)
        self.kept = target.CORPUS / name
        self.folder = work / name
        self.found = self.folder / "found"
        self.seeds = self.folder / "seeds"
        self.log = self.folder / "log"
        self._environ = environ
        for folder in (self.found, self.seeds):
            folder.mkdir(parents=True, exist_ok=True)
        for data in self.target.seeds():
            (self.seeds / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)

    def folders(self) -> list[str]:
        """Of inputs; new ones go into the first."""
        return [str(folder) for folder in (self.found, self.kept, self.seeds) if folder.is_dir()]

    def fuzz(self, seconds: int) -> bool:
        """Whether no input broke the target."""
        words = self.folder / "words"
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in self.target.words)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        before = set(self.found.iterdir())
        status = self._libfuzzer(f"-max_total_time={seconds}", f"-dict={words}", *self.folders())
        text = self.log.read_text(errors="replace")
        done, stats = _DONE.search(text), dict(re.findall(r"stat::(\w+): +(\d+)", text))
        if status != 0 or done is None:
            print(f"{self.name}: FAILED with status {status}; all of its output is in {self.log}")
            print(re.sub(r"(?m)^(#|INFO:|==).*\n", "", text)[-4000:])
            print(*(f"the input: {path}" for path in re.findall(r"Test unit written to (\S+)", text)), sep="\n")
            return False
        edges, features, n_inputs, size = done.groups()
        print(
            f"{self.name}: {seconds} s, {stats['number_of_executed_units']} executions, {stats['average_exec_per_sec']}/s, "
            f"{edges} edges, {features} features, corpus {n_inputs} inputs ({size}), {len(set(self.found.iterdir()) - before)} "
            f"of them new, at most {stats['peak_rss_mb']} MB, no fault"
        )
        return True

    def reach(self) -> bool:
        """Print the lines that all inputs reach."""
        command = [sys.executable, "-m", "fuzz.reach", self.name, *self.folders()]
        return subprocess.run(command, env=self._environ, check=False).returncode == 0

    def keep(self) -> bool:
        """Replace the kept corpus by the smallest inputs, of all that are here, that reach what all of them reach."""
        with tempfile.TemporaryDirectory() as merged:
            if self._libfuzzer("-merge=1", "-use_counters=0", merged, *self.folders()) != 0:
                print(f"{self.name}: FAILED to merge; the output is in {self.log}")
                return False
            shutil.rmtree(self.kept, ignore_errors=True)
            shutil.copytree(merged, self.kept)
        print(f"{self.name}: {len(list(self.kept.iterdir()))} inputs kept in {self.kept}")
        return True

    def _libfuzzer(self, *arguments: str) -> int:
        bounds = (f"-max_len={self.target.max_bytes}", f"-timeout={MAX_INPUT_S}", f"-rss_limit_mb={MAX_RSS_MB}")
        again = self.folder / "again"  # what libFuzzer starts for a merge: it knows only its first argument
        command = [sys.executable, "-m", "fuzz.instrumented", self.name, str(again)]
        again.write_text("#!/bin/sh\nexec " + " ".join(f"'{part}'" for part in command) + ' "$@"\n')
        again.chmod(0o755)
        options = ["-print_final_stats=1", f"-artifact_prefix={self.folder}/", *bounds]
        with self.log.open("wb") as log:
            return subprocess.run(
                [*command, *options, *arguments], env=self._environ, stdout=log, stderr=log, check=False
            ).returncode


@contextmanager
def environment() -> Iterator[dict[str, str]]:
    """That of the processes: their files in memory where that goes, and gone afterwards, however they end."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="modeld-fuzz-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield {**os.environ, "TMPDIR": folder}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"default: {' '.join(target.names())}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="where inputs go that were found (default: build/fuzz)")
    parser.add_argument("--keep", action="store_true", help="do not fuzz: make what was found the kept corpus")
    parser.add_argument("--try", dest="file", type=Path, help="do not fuzz: check this input")
    asked = parser.parse_args()
    names = asked.names or target.names()
    if asked.file is not None:
        print(*(target.run(target.named(name), asked.file.read_bytes()) for name in names))
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; it comes with `make fuzz` on x86-64 Linux", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the process below and its files go, too
    good = True
    with environment() as environ:
        for name in names:
            campaign = Campaign(name, asked.work.resolve(), environ)
            good &= campaign.keep() if asked.keep else campaign.fuzz(asked.seconds) and campaign.reach()
            sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
