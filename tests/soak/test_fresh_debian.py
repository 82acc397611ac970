"""A fresh Debian 12, made by debootstrap and without network inside: the bundle installs, serves, switches, upgrades and goes.

`make soak ARGS="-k fresh_debian -s"` prints the transcripts. The tree is kept in build/fresh: the first run takes a minute or
more for it. Needs root (namespaces, chroot) and a Debian mirror, which is the one that this host's apt has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

TREE = ROOT / "build" / "fresh" / "bookworm"
PACKAGES = "python3,python3-yaml"


@pytest.fixture(scope="module")
def tree() -> Path:
    if os.geteuid() != 0:
        pytest.skip("debootstrap and chroot want root")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not here: apt-get install debootstrap")
    if not TREE.is_dir():
        part = TREE.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", os.fspath(part), mirror()],
            check=True,
            stdout=sys.stderr,
        )
        part.rename(TREE)
    return TREE


def mirror() -> str:
    """Where this host's apt finds Debian."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(IDENTIFIER)"], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        site, release, kind = line.rsplit(" ", 2)
        if kind == "Packages" and release in ("bookworm", "stable", "trixie"):
            return site
    pytest.skip("this host's apt names no Debian mirror")


@pytest.mark.parametrize("way", ["package", "file", "user"])
def test_a_fresh_debian_installs_serves_switches_and_is_clean_again(
    way: str, tree: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", os.fspath(tree), os.fspath(root)], check=True)
    for name, bundle in bundles.items():
        subprocess.run(["cp", "-a", os.fspath(bundle), os.fspath(root / "srv" / name)], check=True)
    shutil.copy(ROOT / "tests" / "soak" / "fresh_debian.sh", root / "srv" / "fresh_debian.sh")
    # Namespaces of its own for network, mounts and processes: nothing gets out, and nothing outlives the script.
    inside = 'mount -t proc proc "$0/proc" && exec chroot "$0" /usr/bin/env -i PATH="$2" TERM=dumb sh /srv/fresh_debian.sh "$1"'
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    begin = time.monotonic()
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside, os.fspath(root), way, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=900,
        check=False,
    )
    print(f"\n-- {way}\n{done.stdout}-- {(time.monotonic() - begin) / 60:.1f} minutes")
    subprocess.run(["rm", "-rf", os.fspath(root)], check=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "FAILED" not in done.stdout
