"""The systemd unit is accepted by systemd-analyze, and grants what a daemon with pinned threads and an mlocked model needs."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from modeld.config import ServerConfig
from modeld.manager.manager import CLOSE_TIMEOUT_S

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy" / "modeld.service"


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    return found


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


def test_systemd_finds_nothing_to_complain_about(analyze: str, tmp_path: Path) -> None:
    unit = tmp_path / "modeld.service"
    # The one thing that a development machine lacks is the installed program.
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/modeld", str(ROOT / "bin" / "modeld")))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_sandbox_is_tight(analyze: str) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", str(UNIT)], capture_output=True, text=True, timeout=60, check=False
    )
    [level] = re.findall(r"Overall exposure level for modeld.service: (\S+)", done.stdout)
    assert float(level) < 2


def test_the_sandbox_leaves_the_calls_that_modeld_makes(analyze: str) -> None:
    """Binding threads to cores, executable memory without a file, locking a model into memory, a process that tries a file."""

    def calls(name: str) -> set[str]:
        listing = subprocess.run([analyze, "syscall-filter", name], capture_output=True, text=True, timeout=60, check=True).stdout
        found: set[str] = set()
        for line in listing.splitlines()[1:]:
            word = line.strip().split(" ")[0]
            if word.startswith("@"):
                found |= calls(word)
            elif word and not word.startswith("#"):
                found.add(word)
        return found

    allowed = calls("@system-service") - calls("@privileged")
    assert {"sched_setaffinity", "memfd_create", "mlock", "mmap", "ppoll", "clone3", "madvise"} <= allowed
    assert {"vfork", "execve", "setsid", "prctl", "prlimit64", "setrlimit", "setpriority", "kill", "wait4", "preadv2"} <= allowed


def test_memory_that_runs_short_does_not_stop_the_daemon_for_the_process_that_tries_a_file(
    service: configparser.SectionProxy,
) -> None:
    assert service["OOMPolicy"] == "continue"
    assert int(service["OOMScoreAdjust"]) < 1000  # what that process sets for itself


def test_it_restarts_what_restarting_can_mend(service: configparser.SectionProxy) -> None:
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == ["2", "78"]  # usage, bad configuration
    assert service["ExecStart"] == "/usr/local/bin/modeld serve --config /etc/modeld/models.yaml"
    assert service["ExecReload"] == "kill -HUP $MAINPID"
    assert service["LimitMEMLOCK"] == "infinity"
    assert service["User"] == "modeld"


def test_a_stop_has_the_time_that_it_may_take(service: configparser.SectionProxy) -> None:
    server = ServerConfig()
    takes_s = server.stop_delay_s + server.stop_timeout_s + CLOSE_TIMEOUT_S + server.send_timeout_s + server.linger_s
    assert int(service["TimeoutStopSec"]) >= takes_s + 10


def test_it_is_told_what_modeld_says(service: configparser.SectionProxy) -> None:
    assert (service["Type"], service["NotifyAccess"], service["WatchdogSec"]) == ("notify", "main", "60")
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()


def test_what_it_remembers_is_its_own(service: configparser.SectionProxy) -> None:
    assert service["StateDirectory"] == "modeld"
    assert service["StateDirectoryMode"] == "0700"
