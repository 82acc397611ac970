"""A systemd that is process 1 of namespaces of its own, over a copy-on-write view of this host: for units as they are installed.

It needs root, and leaves nothing behind: what it writes goes to a tmpfs, and its processes die with their process 1. /proc/sys
and /sys are read-only there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "ip", "systemctl", "systemd-run", "bash")
DEADLINE_S = 60.0

# In new namespaces, before anything else. $1 an empty folder, $2 files to be laid over the root.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1"/upper "$1"/work "$1"/root
cp -a "$2" "$1"/files
mount -t overlay overlay -o lowerdir=/,upperdir="$1"/upper,workdir="$1"/work "$1"/root
cd "$1"/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/shm dev/pts dev/mqueue dev/hugepages
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Nothing of the host's own services: the target wants the journal and no more.
rm -rf etc/systemd/system etc/machine-id var/log/journal var/lib/private/modeld var/lib/modeld etc/modeld
cp -a "$1"/files/. .
mkdir -p etc/systemd/system
printf '[Unit]\\nDefaultDependencies=no\\nWants=systemd-journald.service\\n' > etc/systemd/system/soak.target
ln -s soak.target etc/systemd/system/default.target
ln -s /dev/null etc/systemd/system/network-online.target
echo 0123456789abcdef0123456789abcdef > etc/machine-id
mkdir -p mnt/host
pivot_root . mnt/host
umount -l /mnt/host
mount --make-rshared /  # as systemd does where it takes nothing for a container: credentials are mounted in a fork, and propagate
ip link set lo up
ip address add 192.0.2.1/32 dev lo
exec env -i container=soak PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \\
    --log-target=journal --show-status=no < /dev/null
"""

# One request; the answer as JSON: [status, body], or [0, why there is none].
ASK = """
import http.client, json, socket, sys
method, place, path, body, key, timeout = json.loads(sys.argv[1])
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(place)
client = Unix("localhost", timeout=timeout) if place.startswith("/") else http.client.HTTPConnection(place, timeout=timeout)
fields = {"Content-Type": "application/json"} if body is not None else {}
if key:
    fields["Authorization"] = "Bearer " + key
try:
    client.request(method, path, None if body is None else json.dumps(body), fields)
    answer = client.getresponse()
    print(json.dumps([answer.status, json.loads(answer.read() or b"null")]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


def why_not() -> str | None:
    """What this machine lacks; None: nothing."""
    if os.geteuid() != 0:
        return "it takes root to boot a systemd in namespaces"
    if lacking := [tool for tool in (*TOOLS, str(SYSTEMD)) if shutil.which(tool) is None]:
        return f"{', '.join(lacking)}: not here (apt-get install systemd util-linux iproute2)"
    if _cgroup2() is None or not os.access(_cgroup2() or "", os.W_OK):
        return "there is no cgroup2 that a group can be made in"
    probe = ["unshare", "-m", "-p", "-f", "--uts", "--ipc", "--net", "--cgroup", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False)
    return f"namespaces cannot be had: {done.stderr.strip()}" if done.returncode else None


def _cgroup2() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    return None


class BootedSystemd:
    """Context manager: boots, and ends all of it."""

    def __init__(self, folder: Path, files: Path) -> None:
        """`folder` is empty; `files` has what lies over the host's root, by its path there."""
        root = _cgroup2()
        assert root is not None
        self._group = root / f"modeld-soak-{os.getpid()}-{time.monotonic_ns()}"
        self._group.mkdir()
        into = 'echo $$ > "$1"/cgroup.procs; shift; exec unshare -m -p -f --kill-child --uts --ipc --net --cgroup "$@"'
        self._log = (folder.parent / "boot.log").open("w+")
        self._unshare = subprocess.Popen(
            ["bash", "-c", into, "bash", str(self._group), "bash", "-c", BOOT, "bash", str(folder), str(files)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.pid = 0

    def __enter__(self) -> BootedSystemd:
        try:
            self.pid = int(self._until(self._child, "no process 1"))
            self._until(lambda: self.systemctl("is-active", "soak.target", check=False) == "active", "systemd does not come up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        else:
            self._unshare.kill()
        self._unshare.wait(DEADLINE_S)
        self._log.close()
        groups = [self._group, *(path for path in self._group.rglob("*") if path.is_dir())]
        for group in sorted(groups, reverse=True):  # those inside first
            self._until(functools.partial(_removed, group), f"{group} has processes")

    def _child(self) -> str:
        if self._unshare.poll() is not None:
            raise AssertionError(f"the boot failed: {Path(self._log.name).read_text()}")
        pid = self._unshare.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return children[0] if children and b"systemd" in Path(f"/proc/{children[0]}/cmdline").read_bytes() else ""

    def _until(self, found: Any, what: str) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not (value := found()):
            assert time.monotonic() < deadline, what
            time.sleep(0.05)  # systemd tells nobody outside
        return value

    # -- inside

    def run(self, *command: str, check: bool = True) -> str:
        """What a command in there prints."""
        full = ["nsenter", "-t", str(self.pid), "-a", *command]
        done = subprocess.run(full, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.journal()}"
        return done.stdout.strip()

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check)

    def show(self, name: str, unit: str = "modeld.service") -> str:
        return self.systemctl("show", "-P", name, unit)

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-b", check=False)

    def wait_show(self, name: str, value: str, unit: str = "modeld.service") -> None:
        """Until the unit's property has a value."""
        self._until(lambda: self.show(name, unit) == value, f"{name} is {self.show(name, unit)!r}\n{self.journal()}")

    def ask(
        self, method: str, path: str, body: object = None, *, place: str = "127.0.0.1:8080", key: str = "", timeout: float = 60
    ) -> tuple[int, Any]:
        """Status and JSON; 0 and why, where nothing answers. `place`: host:port, or the path of a Unix socket."""
        order = json.dumps([method, place, path, body, key, timeout])
        namespaces = ["-n", "-m", "-r"] if place.startswith("/") else ["-n"]
        python = "/usr/bin/python3" if place.startswith("/") else sys.executable
        full = ["nsenter", "-t", str(self.pid), *namespaces, python, "-c", ASK, order]
        status, answer = json.loads(subprocess.run(full, capture_output=True, text=True, timeout=300, check=True).stdout)
        return status, answer

    def status_of(self, unit: str = "modeld.service") -> dict[str, str]:
        """/proc/PID/status of the service's main process."""
        text = self.run("cat", f"/proc/{self.show('MainPID', unit)}/status")
        return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
