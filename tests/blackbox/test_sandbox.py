"""What the sandbox of deploy/modeld.service takes away, as far as a process can take it from itself. The whole of it, under a
real systemd: tests/soak/test_booted_systemd.py.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import ROOT, Daemon, demo_config

# MemoryDenyWriteExecute=yes and NoNewPrivileges=yes; both are inherited over execve. linux/prctl.h.
DENIED = """
import ctypes, os, sys
prctl = ctypes.CDLL(None, use_errno=True).prctl
for option, value in ((38, 1), (65, 1)):  # PR_SET_NO_NEW_PRIVS; PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    if prctl(option, value, 0, 0, 0):
        sys.exit(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"""
PR_GET_MDWE = 66
MAPS = "import mmap; mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)"


def test_no_memory_that_is_written_need_be_executed(tmp_path: Path) -> None:
    """The library comes from a memfd, Python calls C and C calls back, a process tries a file: all without such memory."""
    if ctypes.CDLL(None).prctl(PR_GET_MDWE, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel has no PR_SET_MDWE: Linux 6.3 has")
    denied = (sys.executable, "-c", DENIED)
    mapped = subprocess.run([*denied, sys.executable, "-c", MAPS], capture_output=True, text=True, check=False)
    assert "PermissionError" in mapped.stderr  # it is denied indeed
    program = str(shutil.copy(ROOT / "bin" / "modeld", tmp_path))
    with Daemon(demo_config(tmp_path), command=(*denied, sys.executable, program)) as daemon:
        daemon.wait_ready()
        op = daemon.switch_and_wait("demo-calc")
        assert (op["state"], op["steps_ms"]["probe"] > 0) == ("succeeded", True)
        assert daemon.complete("1+1=", max_tokens=3)["choices"][0]["text"] == "2"
