"""How do the wheels come about? modeld's by hatchling with the set of libraries inside; PyYAML's from its Python files alone.

PyYAML's own wheels fit one version of Python each, for the sake of an extension that modeld does not use. One wheel for all goes into
the bundle: `pip install --no-index --find-links packages modeld` then needs nothing else.
"""

from __future__ import annotations

import base64
import email
import hashlib
import io
import os
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import yaml

from scripts.dist.files import Tree
from scripts.dist.release import ROOT, DistError, Release
from scripts.licenses import pyyaml_license

WHEEL = "Wheel-Version: 1.0\nGenerator: modeld-dist\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
LOCAL = "pure"  # PEP 440: a rebuilt one says that it is not upstream's file


def build(release: Release, target: Path) -> None:
    """modeld's wheel. Raises DistError with what hatchling said."""
    with tempfile.TemporaryDirectory() as folder:
        environment = release.environment | {
            "MODELD_LIBRARIES": os.fspath(release.libraries),
            "MODELD_WHEEL_PLATFORM": release.platform,
        }
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        made = Path(folder) / release.wheel
        if done.returncode != 0 or not made.is_file():
            raise DistError(f"hatchling did not make {release.wheel}:\n{done.stdout}{done.stderr}")
        target.write_bytes(made.read_bytes())


def pyyaml_version() -> str:
    return f"{yaml.__version__}+{LOCAL}"


def pyyaml_wheel() -> str:
    return f"pyyaml-{pyyaml_version()}-py3-none-any.whl"


def build_pyyaml(release: Release, target: Path) -> None:
    """From the installed PyYAML: its modules, its metadata, its licence."""
    package = Path(yaml.__file__).parent
    found = sorted(package.parent.glob("[Pp]y[Yy][Aa][Mm][Ll]-*.dist-info/METADATA"))
    if not found:
        raise DistError(f"PyYAML's metadata is not beside {package}; install it with pip into the environment that runs this")
    metadata = email.message_from_string(found[0].read_text(encoding="utf-8"))
    metadata.replace_header("Version", pyyaml_version())
    info = f"pyyaml-{pyyaml_version()}.dist-info"
    tree = Tree()
    for path in package.glob("*.py"):
        tree.copy(f"yaml/{path.name}", path)
    tree.add(f"{info}/METADATA", metadata.as_string())
    tree.add(f"{info}/WHEEL", WHEEL)
    tree.add(f"{info}/licenses/LICENSE", pyyaml_license(package))
    record = "".join(f"{name},sha256={_record_digest(file.data)},{len(file.data)}\n" for name, file in tree.items())
    tree.add(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    target.write_bytes(zipped(tree, release.epoch))


def zipped(tree: Tree, epoch: int) -> bytes:
    buffer = io.BytesIO()
    moment = time.gmtime(epoch)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, file in tree.items():
            info = zipfile.ZipInfo(name, (moment.tm_year, moment.tm_mon, moment.tm_mday, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | file.mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, file.data, compresslevel=9)
    return buffer.getvalue()


def _record_digest(data: bytes) -> str:
    """As PEP 427 wants it: base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
