"""install.sh where systemd runs: the service is started, restarted by an upgrade, and gone without a trace at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.booted_systemd import BootedSystemd, why_not

pytestmark = pytest.mark.soak

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PLACES = (
    "/etc/modeld",
    "/etc/systemd/system",
    "/usr/lib/modeld",
    "/usr/bin/modeld",
    "/usr/local",
    "/var/lib/modeld",
    "/var/lib/private",
)


@pytest.fixture
def systemd(tmp_path: Path, bundles: dict[str, Path]) -> Iterator[BootedSystemd]:
    """Booted over this host, with the bundles in /srv and nothing of modeld installed."""
    if (why := why_not()) is not None:
        pytest.skip(why)
    if shutil.which("dpkg") is None:
        pytest.skip("dpkg is not here")
    files, empty = tmp_path / "files", tmp_path / "root"
    empty.mkdir()
    for name, bundle in bundles.items():
        shutil.copytree(bundle, files / "srv" / name)
    drop_in = files / "etc" / "systemd" / "system" / "modeld.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "zz-test.conf").write_text("[Unit]\nDefaultDependencies=no\n")  # there is no rest of a system to wait for
    with BootedSystemd(empty, files) as booted:
        booted.run("rm", "-f", "/usr/sbin/policy-rc.d")  # a container's image says by it that nothing may be started
        yield booted


def install(systemd: BootedSystemd, bundle: str, *args: str) -> str:
    said = systemd.run("env", "-i", PATH, "TMPDIR=/var/tmp", "sh", f"/srv/{bundle}/install.sh", *args)
    print(f"$ sh install.sh {' '.join(args)}    # {bundle}\n{said}")
    return said


def files(systemd: BootedSystemd) -> list[str]:
    return systemd.run("find", *PLACES, "-not", "-name", "*.pyc", check=False).splitlines()


@pytest.mark.parametrize("way", ["package", "file"])
def test_an_installed_service_runs_is_upgraded_and_leaves_nothing(way: str, systemd: BootedSystemd) -> None:
    how = () if way == "package" else ("--no-dpkg", "--python", "/usr/bin/python3")
    before = files(systemd)
    install(systemd, "old", *how)
    assert systemd.systemctl("is-enabled", "modeld.service") == "enabled"
    systemd.wait_show("StatusText", "demo-stories answers")
    first = systemd.show("MainPID")
    _, op = systemd.ask("POST", "/switch?wait=60", {"model_id": "demo-calc"})
    assert op["state"] == "succeeded", op
    systemd.run("sed", "-i", "s/^  port: 8080/  port: 8081/", "/etc/modeld/models.yaml")

    install(systemd, "new", *how)
    systemd.wait_show("StatusText", "demo-calc answers")  # it remembers
    assert systemd.show("MainPID") != first
    status, answer = systemd.ask("POST", "/v1/completions", {"prompt": "12+30=", "temperature": 0}, place="127.0.0.1:8081")
    assert (status, answer["choices"][0]["text"]) == (200, "42")
    program = "/usr/bin/modeld" if way == "package" else "/usr/local/bin/modeld"
    report = systemd.run("env", "-i", PATH, program, "doctor", "--config", "/etc/modeld/models.yaml", check=False)
    print(f"$ modeld doctor\n{report}")
    assert "\n0 problems, " in report

    install(systemd, "new", "uninstall")
    assert systemd.systemctl("is-active", "modeld.service", check=False) == "inactive"
    assert "/etc/modeld/models.yaml" in files(systemd)
    install(systemd, "new", "uninstall", "--purge")
    assert sorted(files(systemd)) == sorted(before)

    install(systemd, "new", "--no-start", *how)
    assert systemd.systemctl("is-active", "modeld.service", check=False) == "inactive"
    install(systemd, "new", "uninstall", "--purge")
    assert sorted(files(systemd)) == sorted(before)
