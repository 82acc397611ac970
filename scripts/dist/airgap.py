"""How is the bundle for closed rooms packed? One folder with everything, its digests, and the script that looks at them first."""

from __future__ import annotations

from pathlib import Path

from scripts.dist import share
from scripts.dist.files import Tree
from scripts.dist.release import GLIBC, PYTHON, ROOT, Release, dotted
from scripts.licenses import licenses

SUMS = "SHA256SUMS"
SBOM = "sbom.cdx.json"


def contents(release: Release, program: Path, packages: list[Path]) -> Tree:
    """All but the bill of materials and the digests."""
    tree = Tree()
    tree.copy("install.sh", ROOT / "deploy" / "install.sh", mode=0o755)
    tree.add("README.txt", readme(release))
    tree.add("release", facts(release))
    tree.copy("bin/modeld", program, mode=0o755)
    for path in packages:
        tree.copy(f"packages/{path.name}", path)
    tree.graft("share", share.share(release, prefix="/usr/local"))
    tree.copy(f"share/{share.DOC}/LICENSE", ROOT / "LICENSE")  # README.md leads to it
    for name, text in licenses().items():
        tree.add(f"share/{share.DOC}/licenses/{name}.txt", text)
    return tree


def seal(tree: Tree, bill: str) -> Tree:
    """With the bill and, of everything, the digests."""
    tree.add(SBOM, bill)
    tree.add(SUMS, tree.sums())
    return tree


def facts(release: Release) -> str:
    """What install.sh wants to know, a line NAME=VALUE each."""
    return (
        f"version={release.version}\ncommit={release.commit}\nsystem=Linux\nmachine=x86_64\n"
        f"glibc={dotted(GLIBC)}\npython={dotted(PYTHON)}\nvariants={' '.join(variant.name for variant in release.variants)}\n"
    )


def readme(release: Release) -> str:
    return f"""\
modeld {release.version} for Linux on x86-64 (glibc {dotted(GLIBC)} or newer, Python {dotted(PYTHON)} or newer)

  sudo sh install.sh                     installs and starts it; asks nothing
  sh install.sh --prefix "$HOME/.local"  for yourself, without root
  sh install.sh --help                   the rest, uninstall among it

install.sh compares every file with SHA256SUMS before it installs anything. SHA256SUMS itself, and install.sh, are only as
trustworthy as the way they came: compare the digest of the archive with the one that you were told.

  bin/modeld          the whole program in one file, which runs where it lies
  packages/           for dpkg -i, and for pip install --no-index --find-links packages modeld
  share/doc/modeld/   README.md, docs/ (installing.md first), deploy/ (units, proxies, monitoring), licenses/
  share/man/          manual pages
  share/modeld/       two demo models, a configuration to begin with, the systemd unit
  sbom.cdx.json       the bill of materials (CycloneDX 1.6)
"""
