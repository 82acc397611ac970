"""The systemd units are accepted by systemd-analyze, tight by its measure, and grant what a daemon with pinned threads needs.

tests/soak/test_booted_systemd.py runs them.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from modeld.config import ServerConfig
from modeld.daemon import stop_takes_s

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "modeld.service"
DROP_INS = DEPLOY / "systemd"


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    return found


def section(path: Path, name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser[name]


@pytest.fixture
def service() -> configparser.SectionProxy:
    return section(UNIT, "Service")


def installed(folder: Path, *drop_ins: str) -> Path:
    """The units as an administrator would have them, with these drop-ins."""
    # The one thing that a development machine lacks is the installed program.
    program = str(ROOT / "bin" / "modeld")
    (folder / "modeld.service").write_text(UNIT.read_text().replace("/usr/local/bin/modeld", program))
    shutil.copy(DEPLOY / "modeld.socket", folder)
    (folder / "modeld.service.d").mkdir()
    for name in drop_ins:
        shutil.copy(DROP_INS / f"{name}.conf", folder / "modeld.service.d")
    return folder / "modeld.service"


# Drop-ins, and the exposure that `systemd-analyze security` gives them: docs/systemd.md has these figures.
EXPOSURE = {
    (): 1.0,
    ("socket-activated",): 0.3,
    ("open-address",): 1.2,
    ("unix-socket",): 1.3,
    ("gpu",): 1.6,
    ("gpu", "socket-activated"): 0.9,
}


@pytest.mark.parametrize("drop_ins", EXPOSURE, ids=" ".join)
def test_systemd_finds_nothing_to_complain_about(analyze: str, tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    units = [str(installed(tmp_path, *drop_ins)), str(tmp_path / "modeld.socket")]
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("drop_ins", EXPOSURE, ids=" ".join)
def test_the_sandbox_is_as_tight_as_the_documentation_says(analyze: str, tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    """Another systemd knows more settings, and weighs them; what it finds must not be worse."""
    unit = installed(tmp_path, *drop_ins)
    command = [analyze, "security", "--offline=yes", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    [level] = re.findall(r"Overall exposure level for modeld.service: (\S+)", done.stdout)
    assert float(level) <= EXPOSURE[drop_ins]
    names = " and ".join(f"`{name}.conf`" for name in drop_ins) or "`modeld.service` alone"
    assert f"| {names} | {EXPOSURE[drop_ins]} |" in (ROOT / "docs" / "systemd.md").read_text()


def test_every_drop_in_is_tried() -> None:
    assert {name for drop_ins in EXPOSURE for name in drop_ins} == {path.stem for path in DROP_INS.glob("*.conf")}


def test_the_figures_that_were_promised() -> None:
    assert EXPOSURE[()] <= 1.0
    assert EXPOSURE[("socket-activated",)] <= 0.5


def test_one_daemon_serves_all_connections_to_the_socket() -> None:
    sockets = section(DEPLOY / "modeld.socket", "Socket")
    assert sockets["Accept"] == "no"
    assert sockets["ListenStream"] == f"{ServerConfig().host[0]}:{ServerConfig().port}"


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
    assert int(service["TimeoutStopSec"]) >= stop_takes_s(ServerConfig())


def test_it_is_told_what_modeld_says(service: configparser.SectionProxy) -> None:
    assert (service["Type"], service["NotifyAccess"], service["WatchdogSec"]) == ("notify", "main", "60")
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()


def test_what_it_remembers_is_its_own(service: configparser.SectionProxy) -> None:
    assert service["StateDirectory"] == "modeld"
    assert service["StateDirectoryMode"] == "0700"
