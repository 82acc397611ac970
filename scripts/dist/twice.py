"""Do two folders give the same bytes? `make distcheck` copies the tree to two places, makes everything in each, and compares.

What differs between the two on purpose: the folder's name and depth, the umask, the time zone, the language, the order of jobs, the
time. What does not: the compiler, the Python with its packages, and llama.cpp's tree, which this host has once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.dist.release import ROOT, DistError, digest, epoch

SHARED = (".venv", "third_party/llama.cpp")
PLACES = (
    ("one", 0o022, {"TZ": "UTC", "LANG": "C", "LC_ALL": "C"}),
    ("a much/deeper place/two", 0o077, {"TZ": "Pacific/Auckland", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.dist.twice", description=__doc__)
    parser.add_argument("--libraries", type=Path, help="pack this set in both places, instead of building one in each")
    parser.add_argument("--variants", help="build these only")
    parser.add_argument("--allow-native", action="store_true", help="as scripts.dist")
    parser.add_argument("--fast", action="store_true", help="as scripts.dist")
    parser.add_argument("--work", type=Path, help="where the two folders are made and left (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modeld-twice-") as temporary:
        work = args.work or Path(temporary)
        moment = epoch()
        for name, _, _ in PLACES:  # both now: a build takes minutes, in which somebody may go on writing
            copy_tree(work / name)
        found = []
        for name, umask, environment in PLACES:
            place = work / name
            begin = time.monotonic()
            try:
                made = make(place, umask, environment | {"SOURCE_DATE_EPOCH": str(moment)}, args)
            except DistError as error:
                print(f"twice: {error}", file=sys.stderr)
                return 1
            found.append(made)
            print(f"{place}: {len(made)} files in {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    return compare(*found)


def copy_tree(place: Path) -> None:
    """What git would commit, with the times of the files, so that make sees no more work than there is."""
    listed = subprocess.run(
        ["git", "-C", os.fspath(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=True
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source = ROOT / name
        if source.is_file() and name not in SHARED:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place / name)
    for name in SHARED:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to((ROOT / name).resolve())


def make(place: Path, umask: int, environment: dict[str, str], args: argparse.Namespace) -> dict[str, str]:
    """Names in dist/ and their digests."""
    python = place / ".venv" / "bin" / "python"
    flags = [flag for flag, given in (("--allow-native", args.allow_native), ("--fast", args.fast)) if given]
    if args.libraries:
        commands = [[os.fspath(python), "-m", "scripts.dist", "--libraries", os.fspath(args.libraries.resolve()), *flags]]
    else:
        variants = [f"VARIANTS={args.variants}"] if args.variants else []
        commands = [["make", "release", *variants], ["make", "dist", *variants, f"ARGS={' '.join(flags)}"]]
    # The copies have no git to ask; a folder for objects that ccache might share would make the second build no build.
    variables = os.environ | environment | {"CCACHE_DISABLE": "1"}
    variables.pop("PYTHONPATH", None)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        variables.pop(name, None)
    for command in commands:
        done = subprocess.run(
            command, cwd=place, env=variables, umask=umask, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            raise DistError(f"`{' '.join(command)}` failed in {place}:\n{done.stdout[-4000:]}")
    return {path.name: digest(path) for path in sorted((place / "dist").iterdir())}


def compare(one: dict[str, str], two: dict[str, str]) -> int:
    different = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    for name in sorted(one.keys() | two.keys()):
        if name in different:
            print(f"DIFFERENT  {name}\n  {one.get(name, 'not made')}\n  {two.get(name, 'not made')}")
        else:
            print(f"{one[name]}  {name}")
    print(f"{len(different)} of {len(one.keys() | two.keys())} files differ" if different else "identical, bit for bit")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
