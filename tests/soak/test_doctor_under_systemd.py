"""`modeld doctor` on a host with a real systemd: it knows the service, stopped, running and failed, and works in its sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.booted_systemd import BootedSystemd
from tests.soak.test_booted_systemd import booted
from tests.soak.test_booted_systemd import program as program  # a fixture

pytestmark = pytest.mark.soak

DOCTOR = ("/usr/bin/python3", "/usr/local/bin/modeld", "doctor", "--json", "--config", "/etc/modeld/models.yaml")
# The unit's own sandbox around another command.
IN_ITS_SANDBOX = r"""
cd /etc/systemd/system
sed -e 's|^ExecStart=.*|ExecStart=/usr/local/bin/modeld doctor --json --output /var/lib/report/r.json|' \
    -e 's/^Type=.*/Type=oneshot/; s/^StateDirectory=.*/StateDirectory=report/; s/^User=.*/User=report/' \
    -e 's/^Restart=.*//; s/^WatchdogSec=.*//; s/^RuntimeDirectory=.*//' modeld.service > report.service
cp -r modeld.service.d report.service.d
systemctl daemon-reload
systemctl start report
cat /var/lib/report/r.json
"""


def findings(text: str) -> dict[str, dict[str, Any]]:
    """By code; of one that is there several times the last."""
    return {finding["code"]: finding for section in json.loads(text)["sections"] for finding in section["findings"]}


def doctor(systemd: BootedSystemd, *flags: str) -> dict[str, dict[str, Any]]:
    return findings(systemd.run(*DOCTOR, *flags, check=False))


def test_the_service_is_known_stopped_running_and_failed(tmp_path: Path, program: Path) -> None:
    with booted(tmp_path, program) as systemd:
        told = doctor(systemd, "--no-decode")
        assert told["unit"]["facts"]["active"] == "inactive"
        assert told["port_free"]["level"] == "ok"
        assert "modeld.service" in told["descriptors"]["found"]
        assert told["model_too_big"]["about"] == "too-large"
        systemd.systemctl("start", "modeld")
        systemd.wait_show("StatusText", "demo-stories answers")
        told = doctor(systemd)
        pid = int(systemd.show("MainPID"))
        assert told["daemon"]["facts"]["pid"] == told["state"]["facts"]["holder"] == pid
        assert told["decode"]["facts"]["gave_way"] is True
        assert told["remembered"]["facts"]["last"] == "demo-stories"
        sandboxed = findings(systemd.run("bash", "-c", IN_ITS_SANDBOX))
        assert "12+30=42" in sandboxed["decode"]["found"]
        assert sandboxed["daemon"]["facts"]["state"] == "ready"
        assert sandboxed["systemctl_absent"]["level"] == "note"
        assert "check_failed" not in sandboxed
        systemd.systemctl("stop", "modeld")
        systemd.run("bash", "-c", "echo nonsense > /etc/modeld/models.yaml; chmod 000 /srv/models/demo-calc.gguf")
        systemd.systemctl("start", "modeld", check=False)
        systemd.wait_show("ActiveState", "failed")
        told = doctor(systemd, "--no-decode")
        assert told["unit_failed"]["level"] == told["config_invalid"]["level"] == "problem"
        assert "78" in told["unit_failed"]["found"]


def test_a_model_that_the_service_may_not_read_and_a_socket_that_systemd_holds(tmp_path: Path, program: Path) -> None:
    with booted(tmp_path, program, "socket-activated") as systemd:
        systemd.run("chmod", "600", "/srv/models/demo-calc.gguf")
        systemd.systemctl("start", "modeld.socket")
        told = doctor(systemd, "--no-decode")
        assert told["model_unreadable"]["level"] == "problem"
        assert "the service's user" in told["model_unreadable"]["found"]
        assert told["socket_activated"]["level"] == "note"
        assert systemd.show("ActiveState") == "inactive"  # the doctor did not start it
