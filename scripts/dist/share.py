"""What lies beside the program on a host? The tree of PREFIX/share: pages, manuals, completions, demo models, licences, the unit.

The package has it as /usr/share, the bundle installs it below its prefix. Documents keep the places that they have in the source
tree, so that links between them work: README.md, docs/, deploy/, models/README.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.dist.files import Tree, gz, replaced
from scripts.dist.release import ROOT, DistError, Release

DOC = "doc/modeld"
MODELS = ("demo-calc.gguf", "demo-stories.gguf")

# Where each shell looks: the system's own place below /usr, and what a prefix has.
COMPLETIONS = {
    "bash": "bash-completion/completions/modeld",
    "zsh": "zsh/site-functions/_modeld",
    "fish": "fish/vendor_completions.d/modeld.fish",
}
# What makes the things that are handed over, and is of no use beside them.
PACKAGING = ("deploy/install.sh", "deploy/debian/")
DEBIAN_ZSH = "zsh/vendor-completions/_modeld"


def share(release: Release, *, prefix: str, zsh: str = COMPLETIONS["zsh"]) -> Tree:
    """`prefix`: what the files name as their own place, /usr or /usr/local."""
    tree = Tree()
    tree.copy(f"{DOC}/README.md", ROOT / "README.md")
    tree.copy(f"{DOC}/models/README.md", ROOT / "models" / "README.md")
    for folder in ("docs", "deploy"):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and not name.startswith(PACKAGING):
                tree.copy(f"{DOC}/{name}", path, mode=0o755 if path.stat().st_mode & 0o100 else 0o644)
    for name in MODELS:
        tree.copy(f"modeld/models/{name}", ROOT / "models" / name)
    for name, page in manuals(release).items():
        tree.add(f"man/{name}.gz", gz(page))
    for shell, place in COMPLETIONS.items():
        tree.add(zsh if shell == "zsh" else place, run(release, "completion", shell))
    tree.add("modeld/models.yaml", configuration(prefix))
    tree.add("modeld/modeld.service", unit(prefix))
    return tree


def configuration(prefix: str) -> str:
    """configs/models.yaml, its demo models where they are installed."""
    text = (ROOT / "configs" / "models.yaml").read_text()
    return replaced(text, ("../models/", f"{prefix}/share/modeld/models/"))


def unit(prefix: str) -> str:
    """deploy/modeld.service for a program in PREFIX/bin, without the words on how to install it by hand."""
    text = (ROOT / "deploy" / "modeld.service").read_text()
    head, _, body = text.partition("[Unit]\n")
    if not head.startswith("# modeld as a service") or not body:
        raise DistError("deploy/modeld.service does not begin as scripts/dist/share.py knows it")
    body = body.replace("/usr/local/", f"{prefix}/")
    if f"ExecStart={prefix}/bin/modeld serve" not in body:
        raise DistError("deploy/modeld.service starts another program than /usr/local/bin/modeld")
    return (
        "# modeld as a service of its own user. To change something: systemctl edit modeld.\n"
        f"# Variants (GPU, open addresses, socket activation) lie in {prefix}/share/{DOC}/deploy.\n\n[Unit]\n{body}"
    )


def manuals(release: Release) -> dict[str, str]:
    """man1/modeld.1 and so on, generated from the parser."""
    with tempfile.TemporaryDirectory() as folder:
        run(release, "manual", "--output", folder)
        pages = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        if not pages:
            raise DistError("`modeld manual --output` wrote no page")
        return {f"man{page.suffix[1:]}/{page.name}": page.read_text() for page in pages}


def run(release: Release, *args: str) -> str:
    """What `modeld ARGS` of this tree prints."""
    command = [sys.executable, "-m", "modeld", *args]
    done = subprocess.run(command, cwd=ROOT, env=release.environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DistError(f"`modeld {' '.join(args)}` failed with status {done.returncode}:\n{done.stderr.rstrip()}")
    return done.stdout
