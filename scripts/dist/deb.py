"""How does the Debian package come about? A tree with fixed modes, its control files, and dpkg-deb: no debhelper, no build root.

The package is modeld for Debian 12 and later: the system's Python and PyYAML, the set of libraries, the unit enabled. It adds no user to
the host: the unit has DynamicUser=yes, so the user modeld exists while the service runs.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from scripts.bundle import REFERENCE, UNIT
from scripts.dist import elf
from scripts.dist.files import Tree, gz
from scripts.dist.release import GLIBC, LIBRARY, PYTHON, ROOT, STAMP, DistError, Release, dotted
from scripts.dist.share import DEBIAN_ZSH, DOC, configuration, share, unit

HOME = "usr/lib/modeld"  # a private place: modeld is a program, not a module for others
MAINTAINER = "modeld contributors <modeld@modeld.invalid>"
SCRIPTS = ("postinst", "prerm", "postrm")

# The module in a place of its own, found by no other program, and no other program's modules before it.
PROGRAM = """\
#!/usr/bin/python3
import sys

sys.path.insert(0, "/usr/lib/modeld")

from modeld.app import main

sys.exit(main())
"""

DESCRIPTION = """\
daemon that keeps one llama.cpp model loaded and switches it
 modeld serves one language model at a time over HTTP, with routes that
 clients of OpenAI and of llama-server know. A switch to another model is an
 operation with an identifier, progress and a result, and at every moment the
 daemon says which model answers.
 .
 The package holds llama.cpp as complete libraries for several generations of
 x86-64 processors, chosen at start by trying, and two tiny models to begin
 with. It needs no network.
"""


def build(release: Release, target: Path, *, level: int = 6) -> None:
    """Writes the package, compressed at xz's `level`, 0 to 9. Raises DistError where dpkg-deb is missing or refuses."""
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch) / "modeld"
        tree = contents(release)
        tree.write(stage, release.epoch)
        control(release, tree).write(stage / "DEBIAN", release.epoch)
        os.utime(stage, (release.epoch, release.epoch))
        # One thread: with several, xz's blocks could depend on the machine's memory.
        packing = ("--root-owner-group", "--threads-max=1", "-Zxz", f"-z{level}")
        command = ["dpkg-deb", *packing, "--build", os.fspath(stage), os.fspath(target)]
        try:
            done = subprocess.run(command, env=release.environment, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise DistError("dpkg-deb is not here: apt-get install dpkg (or dnf install dpkg)") from None
        if done.returncode != 0:
            raise DistError(f"dpkg-deb refused the package:\n{done.stdout}{done.stderr}")


def contents(release: Release) -> Tree:
    """What is installed, relative to /."""
    tree = Tree()
    tree.add("usr/bin/modeld", PROGRAM, mode=0o755)
    for path in sorted((ROOT / "modeld").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".so", ".stamp.json")):
            tree.copy(f"{HOME}/{path.relative_to(ROOT).as_posix()}", path)
    for path in REFERENCE:
        tree.copy(f"{HOME}/modeld/llm/reference/{path.name}", path)
    tree.add(f"{HOME}/modeld/deploy/{UNIT.name}", unit("/usr"))  # modeld doctor compares it with the one that is installed
    for variant in release.variants:
        folder = f"{HOME}/modeld/libraries/{variant.name}"
        tree.copy(f"{folder}/{LIBRARY}", variant.library)
        tree.copy(f"{folder}/{STAMP}", variant.stamp_path)
    ours = share(release, prefix="/usr", zsh=DEBIAN_ZSH)
    for name, file in ours.items():
        if name == "modeld/modeld.service":
            tree.add("usr/lib/systemd/system/modeld.service", file.data)  # /lib is a link to it wherever this may be installed
        elif name != "modeld/models.yaml":
            tree.add(f"usr/share/{name}", file.data, mode=file.mode)
    tree.add("etc/modeld/models.yaml", configuration("/usr"))
    tree.add(f"usr/share/{DOC}/copyright", copyright_file())
    tree.add(f"usr/share/{DOC}/changelog.gz", gz(changelog(release)))
    return tree


def control(release: Release, tree: Tree) -> Tree:
    made = Tree()
    folders = len(tree.folders()) + 1
    size = folders + sum(-(-len(file.data) // 1024) for _, file in tree.items())  # as dpkg-gencontrol counts: KiB, rounded up
    made.add(
        "control",
        f"Package: modeld\nVersion: {release.version}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n"
        f"Depends: {', '.join(depends(release))}\nSuggests: python3-jinja2\nSection: net\nPriority: optional\n"
        f"Description: {DESCRIPTION}",
    )
    made.add("conffiles", "/etc/modeld/models.yaml\n")
    made.add("md5sums", "".join(line for line in tree.sums("md5").splitlines(keepends=True) if "  etc/" not in line))
    for name in SCRIPTS:
        made.copy(name, ROOT / "deploy" / "debian" / name, mode=0o755)
    return made


def depends(release: Release) -> list[str]:
    """What the libraries name and use, and the floors."""
    needed = {name for variant in release.variants for name in elf.read(variant.library).needed}
    found = [f"libc6 (>= {dotted(max(release.glibc, GLIBC))})", f"python3 (>= {dotted(PYTHON)})", "python3-yaml"]
    if "libstdc++.so.6" in needed:
        found.append("libstdc++6")
    if "libgcc_s.so.1" in needed:
        found.append("libgcc-s1")
    return sorted(found)


def copyright_file() -> str:
    """DEP-5."""
    notice = (ROOT / "LICENSE").read_text()
    upstream = (ROOT / "third_party" / "llama.cpp" / "LICENSE").read_text()
    terms = notice.partition("\n\n")[2].partition("\n\n")[2]
    lines = "".join(f" {line}\n" if line.strip() else " .\n" for line in terms.strip().splitlines())
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: modeld\n"
        "Source: the archive that this package came with; modeld and its demo models have no other\n"
        "Comment: The libraries hold parts of GCC's run time (libstdc++, libgcc), whose runtime library exception\n"
        " allows this under any terms.\n\n"
        f"Files: *\nCopyright: {_holder(notice)}\nLicense: Expat\n\n"
        f"Files: usr/lib/modeld/modeld/libraries/*\nCopyright: {_holder(upstream)}\n"
        "           2024 Mozilla Foundation (llamafile's matrix products)\n"
        "           2023 Jeffrey Quesnelle and Bowen Peng (YaRN)\nLicense: Expat\n\n"
        f"License: Expat\n{lines}"
    )


def _holder(text: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith("Copyright")]
    return line.removeprefix("Copyright ").removeprefix("(c) ")


def changelog(release: Release) -> str:
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(release.epoch))
    return f"modeld ({release.version}) stable; urgency=medium\n\n  * Release {release.version}, built from {release.commit[:12]}.\n\n -- {MAINTAINER}  {date}\n"
