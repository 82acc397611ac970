"""How do files of a pinned source distribution come here? By pip, hash compared, and no code of the distribution is run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

ROOT = Path(__file__).resolve().parent.parent

# pip wants a package's metadata before it hands out the archive. The package's build backend would make it by downloading
# what it is built with, unpinned, and running that. The archive is pinned, so its name and version are known: this stand-in
# tells pip those, and no code from outside runs.
BACKEND_STAND_IN = """
import pathlib

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{folder}")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return folder.name
"""


class FetchError(Exception):
    """The message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A lock file says which archive is meant, and which folder of it is wanted; one of another kind adds to it."""

    package: str
    version: str
    sha256: str
    size: int
    tree: str  # below the archive's top folder

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(**tomllib.loads(path.read_text(encoding="utf-8")))

    @property
    def title(self) -> str:
        return f"{self.package} {self.version}"


def download(pin: Pin, backend: str, work: Path) -> Path:
    """The archive, somewhere in `work`. pip compares the hash as well, so that a wrong one is not even unpacked.

    `backend` is the file of the package's build backend, which a stand-in takes the place of. Raises FetchError with what pip
    said.
    """
    stand_in = work / "stand-in" / backend
    stand_in.parent.mkdir(parents=True)
    (stand_in.parent / "__init__.py").touch()  # without it, the real package would come first where it is installed
    folder = f"{pin.package.replace('-', '_')}-{pin.version}.dist-info"
    stand_in.write_text(BACKEND_STAND_IN.format(folder=folder, package=pin.package, version=pin.version), encoding="utf-8")
    wanted = work / "wanted.txt"
    wanted.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    landing = work / "landing"
    scratch = work / "pip"
    scratch.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"),
        *("--no-deps", "--no-binary", pin.package, "--no-build-isolation", "--require-hashes"),
        *("-r", os.fspath(wanted), "-d", os.fspath(landing)),
    ]
    environment = os.environ | {"PYTHONPATH": os.fspath(work / "stand-in"), "TMPDIR": os.fspath(scratch)}
    say(f"fetching {pin.title}, {pin.size / 1e6:.1f} MB")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output = _watch(process, scratch, pin.size)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    archives = list(landing.glob("*.tar.gz"))
    if process.returncode != 0 or len(archives) != 1:
        raise FetchError(
            f"pip could not bring {pin.package} {pin.version} (exit status {process.returncode}):\n{output.rstrip()}"
        )
    return archives[0]


def _watch(process: subprocess.Popen[str], scratch: Path, total: int) -> str:
    """Tells how far pip's download is until pip ends: on one line of a terminal, every few seconds elsewhere."""
    terminal = sys.stderr.isatty()
    done = 0
    while True:
        try:
            output, _ = process.communicate(timeout=0.2 if terminal else 3)
        except subprocess.TimeoutExpired:
            size = _largest_archive(scratch)
            if size > done:
                done = size
                print(f"  {done / 1e6:5.1f} of {total / 1e6:.1f} MB", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
        else:
            return output


def _largest_archive(scratch: Path) -> int:
    sizes = [0]
    for folder, _, names in os.walk(scratch):  # does not mind what pip removes meanwhile
        for name in names:
            if name.endswith(".tar.gz"):
                with contextlib.suppress(OSError):  # pip has just moved it
                    sizes.append(Path(folder, name).stat().st_size)
    return max(sizes)


def verify(archive: Path, pin: Pin) -> None:
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FetchError(f"cannot read {archive}: {error.strerror}") from None
    if digest != pin.sha256:
        raise FetchError(f"{archive.name} is not {pin.title}:\n  its sha256 is {digest}\n  the lock wants   {pin.sha256}")


def unpack(archive: Path, inner: str, target: Path) -> int:
    """Copies the regular files below TOP/inner into target, whatever else the archive holds. Returns their number."""
    say(f"unpacking {inner}")
    below = PurePosixPath(inner).parts
    count = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            inside = parts[1 + len(below) :]
            if parts[1 : 1 + len(below)] != below or not member.isfile() or inside == (".git",):
                continue
            if not inside or ".." in inside:
                raise FetchError(f"{archive.name} holds a file with the name {member.name!r}; nothing was unpacked")
            path = target.joinpath(*inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # a regular file
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file)
            if member.mode & 0o100:
                path.chmod(0o755)
            count += 1
    return count


def show(path: Path) -> str:
    return os.fspath(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def say(text: str) -> None:
    print(f"fetch: {text}", file=sys.stderr, flush=True)
