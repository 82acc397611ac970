"""`python -m scripts.dist`: everything that is handed over, into one folder; sizes and digests are printed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.dist import airgap, deb, sbom, wheels
from scripts.dist.release import GLIBC, PYTHON, ROOT, DistError, Release, digest, dotted, read


def make(release: Release, out: Path, *, fast: bool = False) -> list[Path]:
    """Fills `out`, whose files of these names are replaced; others stay. Returns them, the digests' file last.

    `fast` compresses package and bundle little.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as folder:  # on one file system: renames are whole
        part = Path(folder)
        program = part / "modeld"
        packer = os.fspath(ROOT / "scripts" / "bundle.py")
        command = [sys.executable, packer, os.fspath(program), "--libraries", os.fspath(release.libraries)]
        done = subprocess.run(command, env=release.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DistError(f"scripts/bundle.py failed:\n{done.stdout}{done.stderr}")
        debian, wheel, pyyaml = part / release.deb, part / release.wheel, part / wheels.pyyaml_wheel()
        deb.build(release, debian, level=0 if fast else 6)
        wheels.build(release, wheel)
        wheels.build_pyyaml(release, pyyaml)
        tree = airgap.contents(release, program, [debian, wheel, pyyaml])
        handed = {"bin/modeld": program, **{f"packages/{path.name}": path for path in (debian, wheel, pyyaml)}}
        bill = sbom.bill(release, {name: digest(path) for name, path in handed.items()})
        (part / "sbom.cdx.json").write_text(bill)
        bundle = part / f"{release.folder}.tar.gz"
        bundle.write_bytes(airgap.seal(tree, bill).tar_gz(release.folder, release.epoch, level=1 if fast else 9))
        made = [program, wheel, pyyaml, debian, bundle, part / "sbom.cdx.json"]
        sums = part / "SHA256SUMS"
        sums.write_text("".join(f"{digest(path)}  {path.name}\n" for path in sorted(made)))
        for path in (*made, sums):
            path.chmod(0o755 if path == program else 0o644)
            os.utime(path, (release.epoch, release.epoch))
            path.replace(out / path.name)
    return [out / path.name for path in (*made, sums)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.dist", description=__doc__)
    parser.add_argument("--libraries", type=Path, default=ROOT / "build" / "release", help="the set (default: build/release)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--allow-native", action="store_true", help="take libraries that run on this host's CPU only; for tests")
    parser.add_argument("--fast", action="store_true", help="compress little; for tests")
    args = parser.parse_args()
    try:
        release = read(args.libraries, allow_native=args.allow_native)
        made = make(release, args.out, fast=args.fast)
    except DistError as error:
        print(f"dist: {error}", file=sys.stderr)
        return 1
    variants = ", ".join(variant.name for variant in release.variants)
    print(f"modeld {release.version}, commit {release.commit[:12]}, SOURCE_DATE_EPOCH={release.epoch}; libraries: {variants}")
    print(f"floors: glibc {dotted(GLIBC)} (the libraries want {dotted(release.glibc)}), Python {dotted(PYTHON)}")
    for path in made:
        print(f"{digest(path)}  {path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
