"""`modeld doctor` on made-up hosts, and what becomes of checks that hang, raise or die."""

from __future__ import annotations

import ast
import contextlib
import http.server
import json
import os
import re
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeld import keys
from modeld.doctor import (
    apart,
    configured,
    cores,
    doctor,
    files,
    host,
    library,
    limits,
    memory,
    network,
    procfs,
    report,
    speed,
    state,
    unit,
)
from modeld.doctor.apart import Answer, Job, ask
from modeld.doctor.limits import Subject
from modeld.doctor.network import Address
from modeld.doctor.procfs import Limit, Roots
from modeld.doctor.report import Finding, Level, Report, Section
from modeld.llm.footprint import Footprint
from modeld.llm.variants import Survey, Tried, Verdict
from modeld.manager.remembered import Crashes, ModelFile, Remembered
from modeld.types import ModelSpec
from tests import fake_host
from tests.fake_host import GIB

# Later Pythons warn of a fork beside the thread that pytest keeps its timeout with; the doctor has one thread.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

ROOT = Path(__file__).resolve().parent.parent
DOCS = (ROOT / "docs" / "doctor.md").read_text()
MIB = 1 << 20


def codes(findings: Iterable[Finding]) -> dict[str, Level]:
    return {finding.code: finding.level for finding in findings}


def one(findings: Iterable[Finding], code: str) -> Finding:
    found = [finding for finding in findings if finding.code == code]
    assert len(found) == 1, found
    return found[0]


def spec(model_id: str = "a", **settings: object) -> ModelSpec:
    return replace(ModelSpec(id=model_id, path=Path("/m.gguf")), **settings)  # type: ignore[arg-type]


# -- documented


def codes_in_the_source() -> set[str]:
    found = set()
    for path in (ROOT / "modeld" / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("ok", "note", "warning", "problem", "make"):
                code = node.args[0]
                assert isinstance(code, ast.Constant), f"{path}:{node.lineno}: a code is a literal, so that it can be documented"
                found.add(str(code.value))
    return found


def test_every_finding_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([a-z0-9_]+)` \|", DOCS, re.MULTILINE))
    assert documented == codes_in_the_source()
    assert len(documented) > 80


def test_every_section_of_the_example_is_one_of_the_report() -> None:
    source = (ROOT / "modeld" / "doctor" / "doctor.py").read_text()
    names = re.findall(r'^        "([a-z ]+)": ', source.split("sections = {")[1].split("}\n")[0], re.MULTILINE)
    assert len(names) == 11
    for name in names:
        assert re.search(rf"^## .*{name}", DOCS, re.MULTILINE | re.IGNORECASE), name


# -- apart


def test_answers_come_in_the_order_of_the_questions() -> None:
    jobs = [Job(lambda n=n: n * n, 20.0) for n in range(20)]  # type: ignore[misc]
    assert [answer.value for answer in ask(jobs, at_once=3)] == [n * n for n in range(20)]


def test_a_check_that_hangs_costs_its_own_answer() -> None:
    def hang() -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.pause()
        return 0

    hung, well = ask([Job(hang, 0.2), Job(lambda: 7, 20.0)])
    assert (hung.value, hung.hung, hung.failure) == (None, True, "did not end within 0.2 s")
    assert well.value == 7
    with pytest.raises(ChildProcessError):  # nobody is left behind
        os.waitpid(-1, os.WNOHANG)


def test_a_check_that_stops_itself_is_ended() -> None:
    [answer] = ask([Job(lambda: os.kill(os.getpid(), signal.SIGSTOP), 0.2)])
    assert answer.hung


def test_a_check_that_dies_is_told_by_the_name_of_its_signal_and_its_last_words() -> None:
    def die() -> None:
        os.write(2, b"GGML_ASSERT(x) failed\n")
        os.kill(os.getpid(), signal.SIGILL)

    [answer] = ask([Job(die, 20.0)])
    assert (answer.failure, answer.signal, answer.said) == ("was ended by SIGILL", "SIGILL", "GGML_ASSERT(x) failed")


def test_what_a_check_raises_is_told_without_what_it_quotes() -> None:
    def quote() -> None:
        raise ValueError("could not convert 'sk-Ostrich5f3a91c7'")

    def look() -> None:
        Path("/nowhere/Ostrich5f3a91c7").read_text()

    [quoted, missing] = ask([Job(quote, 20.0), Job(look, 20.0)])
    assert quoted.failure.startswith("raised ValueError")
    assert "Ostrich" not in quoted.failure
    assert missing.failure.startswith("raised FileNotFoundError: No such file or directory")


def test_a_check_without_an_answer_or_with_too_long_a_one_is_no_answer() -> None:
    def too_long() -> bytes:
        return b"x" * (apart.MAX_ANSWER_BYTES + MIB)

    def leave() -> bytes:
        os._exit(5)

    silent, long = ask([Job(leave, 20.0), Job(too_long, 20.0)])
    assert (silent.value, silent.failure) == (None, "ended with status 5 and no answer")
    assert long.value is None


def test_where_no_process_can_be_had_that_is_the_answer() -> None:
    def ask_there() -> list[str]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with contextlib.suppress(OSError):
            while True:
                os.dup(0)
        several = ask([Job(lambda: 1, 20.0), Job(lambda: 2, 20.0)])
        return [answer.failure for answer in several if not answer.started]

    [answer] = ask([Job(ask_there, 20.0)])
    assert answer.value == ["could not be started: Too many open files"] * 2, answer


def test_the_children_of_a_check_end_with_it() -> None:
    read_end, write_end = os.pipe()

    def start_and_hang() -> None:
        if not os.fork():
            signal.pause()
        os.close(write_end)
        signal.pause()

    [answer] = ask([Job(start_and_hang, 0.3)])
    os.close(write_end)
    assert answer.hung
    assert os.read(read_end, 1) == b""  # nobody has its other end any more
    os.close(read_end)


# -- the readers


@pytest.mark.parametrize("text", ["", "0-", "a", "3-1x", "0-99999999", ",", "0--3", "1\x00", "٣"])
def test_a_list_of_cores_that_is_none_is_empty(text: str) -> None:
    assert procfs.cpu_list(text) == []


def test_a_list_of_cores() -> None:
    assert procfs.cpu_list("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]


@pytest.mark.parametrize("text", ["max", "", "unlimited", "1e3", "0x10", "9" * 30, "-", "1 2", "٣"])
def test_what_is_no_number_is_none(text: str) -> None:
    assert procfs.whole(text) is None


def test_a_sysctl_can_be_read() -> None:
    """The kernel refuses a large read of these."""
    assert (procfs.number(Path("/proc/sys/kernel/pid_max")) or 0) > 100


def test_limits_of_this_process_are_read() -> None:
    found = procfs.limits(Path("/proc"), "self")
    assert {"Max open files", "Max locked memory", "Max processes"} <= set(found)


def test_the_mount_of_a_path_is_the_innermost(tmp_path: Path) -> None:
    mounts = (
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "23 22 0:40 / /srv rw - xfs /dev/sdb rw\n"
        "24 23 0:41 / /srv/models\\040of\\040ours ro,nosuid - nfs4 host:/x rw\n"
        "garbage\n25 - -\n"
    )
    roots = fake_host.host(tmp_path, **{"proc/self/mountinfo": mounts})
    found = procfs.mount_of(roots.proc, "/srv/models of ours/a.gguf")
    assert found is not None
    assert (found.kind, "ro" in found.options) == ("nfs4", True)
    assert procfs.mount_of(roots.proc, "/srvx").kind == "ext4"  # type: ignore[union-attr]


# -- processor and cores


def cores_of(roots: Roots, *models: ModelSpec) -> list[Finding]:
    return [*cores.processor(roots), *cores.cores(roots, "self", models, is_daemon=False)]


def test_a_healthy_host_has_nothing_to_say_but_ok(tmp_path: Path) -> None:
    found = cores_of(fake_host.host(tmp_path))
    assert set(codes(found).values()) == {Level.OK}
    assert "AVX-512 with VNNI" in one(found, "processor").found
    assert one(found, "cores").facts["usable"] == 8


def test_arm64_has_a_name_and_instructions(tmp_path: Path) -> None:
    found = one(cores_of(fake_host.host(tmp_path, **{"proc/cpuinfo": fake_host.ARM64})), "processor").found
    assert found == "an arm64 processor (implementer 0x41, part 0xd40): SVE, I8MM, dot product, NEON"


def test_a_quota_of_version_2_bounds_the_threads(tmp_path: Path) -> None:
    groups = fake_host.cgroup_v2(tmp_path, "/a/b", {"cpu.max": "max 100000", "cpu.stat": "nr_periods 10\nnr_throttled 0"})
    parent = {"cgroup/a/cpu.max": "150000 100000", "cgroup/a/cpu.stat": "nr_periods 100\nnr_throttled 60"}
    found = cores_of(fake_host.host(tmp_path, **groups, **parent), spec(n_threads=8))
    assert one(found, "cores").facts["usable"] == 2
    assert "1.50 of 8 cores" in one(found, "quota").found
    assert "60 of 100 periods" in one(found, "throttled").found
    assert one(found, "threads_over").level is Level.WARNING


def test_a_quota_of_version_1_is_a_warning_since_modeld_does_not_read_it(tmp_path: Path) -> None:
    files = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}
    found = cores_of(fake_host.host(tmp_path, **fake_host.cgroup_v1(tmp_path, "cpu", "/docker/x", files)))
    warned = one(found, "quota_v1")
    assert (warned.level, "n_threads: 2" in warned.advice) == (Level.WARNING, True)


def test_a_quota_of_minus_one_or_of_nonsense_is_none(tmp_path: Path) -> None:
    for index, quota in enumerate(("-1", "0", "x", "9" * 40)):
        folder = tmp_path / str(index)
        files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}
        assert "quota_v1" not in codes(cores_of(fake_host.host(folder, **fake_host.cgroup_v1(folder, "cpu", "/x", files))))


def test_numa_clock_load_and_steal(tmp_path: Path) -> None:
    more = {
        "sys/devices/system/node/node0/cpulist": "0-3",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       67108864 kB",
        "sys/devices/system/node/node1/cpulist": "4-7",
        "sys/devices/system/node/node1/meminfo": "Node 1 MemTotal:       67108864 kB",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_driver": "intel_pstate",
        "sys/devices/system/cpu/cpu1/cpufreq/energy_performance_preference": "balance_performance",
        "proc/loadavg": "9.50 1 1 1/1 1",
        "proc/stat": "cpu  1000 0 500 8000 10 0 5 500 0 0\n",
    }
    found = cores_of(fake_host.host(tmp_path, **more))
    assert "node0: 4 cores, 64 GiB" in one(found, "numa").found
    assert one(found, "governor").facts["slow"] == 1
    assert one(found, "load").level is Level.NOTE
    assert "5.0%" in one(found, "stolen").found


GARBAGE = ["", "\0\0\0", "max", "9" * 5000, "-1", "a: b: c\n" * 50, "ü\n\n:\n=\n[", "0::\n5:memory\n:::\n", "1 2 3 - \n - - -\n"]


@pytest.mark.parametrize("text", GARBAGE, ids=[repr(text[:12]) for text in GARBAGE])
def test_no_garbage_in_any_file_makes_a_check_raise(tmp_path: Path, text: str) -> None:
    roots = fake_host.host(tmp_path, **dict.fromkeys(fake_host.PLAIN, text))
    found = [*cores_of(roots, spec()), *host.versions(roots)]
    room, more = memory.measure(roots, "self", is_daemon=True)
    found += more
    found += memory.models(room, {"a": Footprint(1, 2, 3)}, [spec()], overlap=True, has_gpu=False)
    found += memory.kernel(roots, max_threads=600, from_zip=True)
    found += limits.findings(roots, Subject("self", "it"), 512, [spec(load_mode="mlock")], {"a": Footprint(1, 2, 3)})
    report.to_text(Report("1", "now", (Section("all", tuple(found)),)))


def test_without_proc_and_sys_there_are_notes_and_no_problems(tmp_path: Path) -> None:
    roots = Roots(tmp_path / "proc", tmp_path / "sys", tmp_path)
    room, found = memory.measure(roots, "self", is_daemon=False)
    found += [*cores_of(roots, spec()), *limits.findings(roots, Subject("self", "it"), 512, [spec()], {})]
    found += memory.models(room, {"a": Footprint(GIB, 0, 0)}, [spec()], overlap=False, has_gpu=False)
    told = codes(found)
    assert {"cores_unknown", "memory_unknown", "limits_unknown", "processor_unknown"} <= set(told)
    assert Level.PROBLEM not in told.values()


# -- memory


def memory_of(roots: Roots, *models: ModelSpec, overlap: bool = False, **needs: int) -> list[Finding]:
    room, found = memory.measure(roots, "self", is_daemon=False)
    footprints = {name: Footprint(n_bytes, 0, 0) for name, n_bytes in needs.items()}
    return found + list(memory.models(room, footprints, models, overlap=overlap, has_gpu=False))


def test_models_are_held_against_what_there_is_and_what_is_free(tmp_path: Path) -> None:
    found = memory_of(fake_host.host(tmp_path), spec("a"), spec("b"), spec("c"), spec("d"), a=GIB, b=10 * GIB, c=20 * GIB)
    told = {finding.about: finding.code for finding in found if finding.about}
    assert told == {"a": "model_memory", "b": "model_tight", "c": "model_too_big", "d": "model_memory_unknown"}
    assert "20.00 GiB" in one(found, "model_too_big").found
    assert "16.00 GiB (MemTotal)" in one(found, "model_too_big").found


def test_a_limit_of_a_group_above_counts_in_both_versions(tmp_path: Path) -> None:
    v2 = fake_host.cgroup_v2(tmp_path / "2", "/a/b", {"memory.max": "max", "memory.current": "1000"})
    above = {"cgroup/a/memory.max": str(4 * GIB), "cgroup/a/memory.current": str(3 * GIB)}
    above["cgroup/a/memory.stat"] = f"inactive_file {GIB}"
    found = memory_of(fake_host.host(tmp_path / "2", **v2, **above), spec("a"), spec("b"), a=5 * GIB, b=int(2.5 * GIB))
    assert "4.00 GiB (cgroup /a)" in one(found, "model_too_big").found
    assert "2.00 GiB are there now (cgroup /a)" in one(found, "model_tight").found
    v1 = fake_host.cgroup_v1(tmp_path / "1", "memory", "/x", {"memory.limit_in_bytes": str(GIB), "memory.usage_in_bytes": "0"})
    found = memory_of(fake_host.host(tmp_path / "1", **v1), spec("a"), a=2 * GIB)
    assert "1.00 GiB (cgroup /x)" in one(found, "model_too_big").found
    none = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "0"}
    roots = fake_host.host(tmp_path / "0", **fake_host.cgroup_v1(tmp_path / "0", "memory", "/x", none))
    assert "memory_limit" not in codes(memory_of(roots))


def test_overlap_is_held_against_all_there_is(tmp_path: Path) -> None:
    found = memory_of(fake_host.host(tmp_path), spec("a"), spec("b"), spec("c"), overlap=True, a=9 * GIB, b=8 * GIB, c=GIB)
    warned = one(found, "overlap_too_big")
    assert "do not fit together: 1; a and b take about 17.00 GiB" in warned.found


def test_settings_of_the_kernel(tmp_path: Path) -> None:
    more = {
        "proc/sys/vm/overcommit_memory": "2",
        "proc/sys/vm/max_map_count": "1000",
        "proc/sys/vm/memfd_noexec": "2",
        "proc/sys/vm/swappiness": "60",
        "proc/pressure/memory": "some avg10=1.00 avg60=12.50 avg300=1.00 total=1\nfull avg10=0.00 avg60=0.00\n",
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB\nSwapTotal: 1000 kB\nSwapFree: 100 kB\nCommitLimit: 10 kB\n",
    }
    found = list(memory.kernel(fake_host.host(tmp_path, **more), max_threads=600, from_zip=True))
    assert set(codes(found)) == {"overcommit", "maps_few", "memfd_noexec", "huge_pages", "memory_pressure", "swap_used"}


# -- limits


def limits_of(
    roots: Roots, *models: ModelSpec, connections: int = 512, whose: Subject | None = None, **needs: int
) -> list[Finding]:
    footprints = {name: Footprint(n_bytes, GIB, 0) for name, n_bytes in needs.items()}
    return list(limits.findings(roots, whose or Subject("self", "this process"), connections, models, footprints))


def test_limits_that_carry_what_is_configured_are_ok(tmp_path: Path) -> None:
    found = limits_of(fake_host.host(tmp_path), spec(load_mode="mlock"), a=MIB)
    assert codes(found) == {"descriptors": Level.OK, "mlock": Level.OK, "threads": Level.OK}


def test_limits_that_are_too_low_are_problems_with_numbers(tmp_path: Path) -> None:
    low = fake_host.LIMITS.replace("524288", "1024  ").replace("63000                63000", "300                  300  ")
    found = limits_of(fake_host.host(tmp_path, **{"proc/self/limits": low}), spec(load_mode="mlock"), connections=1000, a=GIB)
    assert codes(found) == dict.fromkeys(("descriptors_few", "mlock_limit", "threads_few"), Level.PROBLEM)
    assert "976 are served at once" in one(found, "descriptors_few").found
    assert "1.00 GiB of weights" in one(found, "mlock_limit").found
    assert "8 MiB" in one(found, "mlock_limit").found


def test_a_cgroup_bounds_threads_and_root_is_not_held_to_its_own_limit(tmp_path: Path) -> None:
    groups = fake_host.cgroup_v2(tmp_path, "/x", {"pids.max": "100", "pids.current": "10"})
    low = fake_host.LIMITS.replace("63000 ", "1     ")
    roots = fake_host.host(tmp_path, **groups, **{"proc/self/limits": low})
    assert "90 more threads" in one(limits_of(roots, whose=Subject("self", "it", is_root=True)), "threads_few").found
    assert "1 more threads" in one(limits_of(roots), "threads_few").found


def test_the_capability_to_lock_memory_needs_no_limit(tmp_path: Path) -> None:
    able = fake_host.STATUS.replace("CapEff:\t0000000000000000", f"CapEff:\t{1 << procfs.CAP_IPC_LOCK:016x}")
    found = limits_of(fake_host.host(tmp_path, **{"proc/self/status": able}), spec(load_mode="mlock"), a=GIB)
    assert codes(found)["mlock"] is Level.OK


def test_the_limits_of_the_unit_stand_for_those_of_this_shell(tmp_path: Path) -> None:
    given = {"Max open files": Limit(65536, 65536), "Max locked memory": Limit(None, None), "TasksMax": Limit(128, 128)}
    found = limits_of(
        fake_host.host(tmp_path), spec(load_mode="mlock"), whose=Subject("self", "the unit", unit_limits=given), a=GIB
    )
    assert codes(found) == {"descriptors": Level.OK, "mlock": Level.OK, "threads_few": Level.PROBLEM}


# -- configuration


CANARY = "Ostrich5f3a91c7"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"server: {CANARY}\nmodels: []", "line 1: server: expected a mapping"),
        (f"server: {{port: {CANARY}}}\nmodels: []", "line 1: server.port: expected a whole number 0..65535"),
        (f"server: {{api_keys: {CANARY}}}\nmodels: []", "line 1: unknown key"),
        (f"{CANARY}: 1\nmodels: []", "line 1: unknown key"),
        (f"models:\n- {{id: a, path: x, {CANARY}: 1}}", "line 2: unknown key"),
        (f"models:\n- {{id: a, path: x, n_ctx: {CANARY}}}", "line 2: models[0].n_ctx: expected a whole number 0..1073741824"),
        (f"models: [{{id: '{CANARY} {CANARY}', path: x}}]", "line 1: models[0].id: expected"),
        (f"models: [{{id: a, path: x}}]\ndefault_model: {CANARY}", "line 2: default_model: expected"),
        (f"a: &x {CANARY}\nb: *x\nmodels: []", "line"),
        (f"models: [\n{CANARY}", "line"),
        (f"limits: {{per_key: {{'{CANARY} x': {{}}}}}}\nmodels: []", "line 1"),
        (f"limits: {{per_key: {{{CANARY}: {{max_requests: {CANARY}}}}}}}\nmodels: []", "line 1: expected a whole number"),
        (f"\x00{CANARY}", "mistake"),
    ],
)
def test_mistakes_are_told_by_line_and_key_and_never_by_what_stands_there(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    read = configured.read(path, {})
    assert read.config is None
    found = one(read.findings, "config_invalid")
    assert said in found.found
    assert CANARY not in str(report.to_json(Report("1", "", (Section("x", read.findings),))))


def configuration(tmp_path: Path, text: str, **environ: str) -> dict[str, Level]:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return codes(configured.read(path, environ).findings)


def test_a_variable_that_is_wrong_is_told_without_its_value(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: []")
    found = one(configured.read(tmp_path / "models.yaml", {"MODELD_PORT": CANARY}).findings, "config_invalid")
    assert "MODELD_PORT has a value that it cannot have" in found.found
    assert CANARY not in found.found


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: []\nserver: {host: 0.0.0.0}")
    read = configured.read(tmp_path / "models.yaml", {"MODELD_HOST": "127.0.0.1", "MODELD_PORT": "9"})
    assert read.config is not None
    assert (read.config.server.host, read.config.server.port) == (("127.0.0.1",), 9)
    assert "exposed" not in codes(read.findings)


def test_who_is_let_in(tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text(f"ci admin {CANARY}{CANARY}\n")
    key_file.chmod(0o600)
    assert configuration(tmp_path, "models: []")["keys_none"] is Level.NOTE
    assert configuration(tmp_path, "models: []\nserver: {host: 0.0.0.0}")["exposed"] is Level.PROBLEM
    assert configuration(tmp_path, "models: []\nserver: {host: 0.0.0.0, insecure: true}")["insecure"] is Level.WARNING
    open_host = "models: []\nserver: {allowed_hosts: ['*'], unix_socket: s, unix_socket_mode: 0666}"
    told = configuration(tmp_path, open_host)
    assert (told["any_host"], told["socket_open"]) == (Level.WARNING, Level.NOTE)
    told = configuration(tmp_path, "models: []\nserver: {api_key_file: keys}")
    assert told["keys"] is Level.OK
    key_file.chmod(0o660)
    assert configuration(tmp_path, "models: []\nserver: {api_key_file: keys}")["keys_writable"] is Level.WARNING
    variable = configuration(tmp_path, "models: []", MODELD_API_KEYS=f"a use {CANARY}{CANARY}")
    assert variable["keys_variable"] is Level.NOTE


def test_keys_that_the_unit_hands_over_count(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: []\nserver: {host: 0.0.0.0}")
    key_file = tmp_path / "keys"

    def told() -> dict[str, Level]:
        return codes(configured.read(tmp_path / "models.yaml", {}, key_file).findings)

    assert told() == {"config": Level.OK, "keys_credential_missing": Level.PROBLEM}
    key_file.write_text(CANARY)
    key_file.chmod(0o600)
    assert told() == {"config": Level.OK, "keys_credential": Level.OK}
    key_file.chmod(0o644)
    assert told() == {"config": Level.OK, "keys_readable": Level.WARNING}


def test_who_can_write_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: []")
    assert "config_writable" not in codes(configured.read(path, {}).findings)
    path.chmod(0o666)
    assert one(configured.read(path, {}).findings, "config_writable").about == str(path)


# -- the state folder


def test_what_is_remembered_is_told(tmp_path: Path) -> None:
    known = Remembered(
        last_good=ModelFile("a", None),
        trying=ModelFile("c", None),
        crashes={"b": Crashes(None, 2, time.time() - 7200)},
        vouched={"/x": (1, 2, 3, 4)},
    )
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "state.json").write_text(json.dumps(known.to_json()))
    found = list(state.look(Roots(), folder, by_service=False))
    assert "the next start loads a; files known to be sound: 1" in one(found, "remembered").found
    assert "2 times in a row" in one(found, "quarantined").found
    assert "2.0 h" in one(found, "quarantined").found
    assert "state_trying" in codes(found)


def test_a_state_folder_that_cannot_be_used(tmp_path: Path) -> None:
    assert codes(state.look(Roots(), None, by_service=False)) == {"state_none": Level.WARNING}
    (tmp_path / "file").write_text("")
    assert codes(state.look(Roots(), tmp_path / "file", by_service=False)) == {"state_unwritable": Level.PROBLEM}
    assert "state_new" in codes(state.look(Roots(), tmp_path / "new" / "er", by_service=False))
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "state.json").write_text("{}")
    (folder / "state.json.bad").write_text("")
    found = list(state.look(Roots(), folder, by_service=False))
    assert codes(found)["state_open"] is Level.WARNING
    assert sum(finding.code == "state_damaged" for finding in found) == 2
    mounts = f"22 1 8:1 / / rw - ext4 /dev/sda rw\n23 22 8:2 / {folder} ro - ext4 /dev/sdb ro\n"
    roots = fake_host.host(tmp_path / "host", **{"proc/self/mountinfo": mounts})
    assert codes(state.look(roots, folder, by_service=False))["state_unwritable"] is Level.PROBLEM


def test_who_holds_the_state_folder_is_read_and_not_tried(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("")
    line = f"1: FLOCK  ADVISORY  WRITE 4711 fe:00:{lock.stat().st_ino} 0 EOF\n2: POSIX  ADVISORY  READ 1 x y\ngarbage\n"
    roots = fake_host.host(tmp_path / "host", **{"proc/locks": line})
    assert state.holder_of(roots.proc, lock) == 4711
    assert state.holder_of(roots.proc, tmp_path / "none") is None


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    full = os.statvfs_result((*found[:4], 10, *found[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    assert codes(state.look(Roots(), tmp_path, by_service=False))["state_full"] is Level.PROBLEM


# -- model files


def test_a_file_is_read_as_the_service_would(tmp_path: Path) -> None:
    """As root by a process that becomes that user; without root there is nothing to try, and nothing is said."""
    shared = tmp_path / "m.gguf"
    shared.write_bytes(b"x")
    hidden = files.Reader("the service's user modeld", 65519, (65519,), ("/home", str(tmp_path)))
    model = spec(path=ROOT / "models" / "demo-calc.gguf")
    assert codes(files.look(Roots(), spec(path=shared), hidden).findings)["model_unseen"] is Level.PROBLEM
    assert codes(files.look(Roots(), model, files.Reader("", None)).findings) == {"model": Level.OK}
    if os.geteuid() == 0:
        shared.chmod(0o600)
        assert files.refusal_to(shared, files.Reader("it", 65519, (65519,))) == "Permission denied"
        reader = files.Reader("the service's user modeld", 65519, (65519,))
        assert codes(files.look(Roots(), spec(path=shared), reader).findings)["model_unreadable"] is Level.PROBLEM


def test_where_a_file_lies_and_who_may_write_it(tmp_path: Path) -> None:
    import shutil

    path = Path(shutil.copy(ROOT / "models" / "demo-calc.gguf", tmp_path))
    path.chmod(0o666)
    mounts = f"22 1 8:1 / / rw - ext4 /dev/sda rw\n23 22 0:9 / {tmp_path} rw - nfs4 host:/x rw\n"
    roots = fake_host.host(tmp_path / "host", **{"proc/self/mountinfo": mounts})
    looked = files.look(roots, spec(path=path), files.Reader("", None))
    assert codes(looked.findings) == {"model": Level.OK, "model_remote": Level.NOTE, "model_writable": Level.WARNING}
    assert looked.footprint is not None


def test_a_fifo_or_a_folder_for_a_model_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        assert codes(files.look(Roots(), spec(path=path), files.Reader("", None)).findings) == {"model_bad": Level.PROBLEM}


# -- the unit


SHIPPED = (ROOT / "deploy" / "modeld.service").read_text()
UNIT = "etc/systemd/system/modeld.service"
SYSTEMCTL = """#!/bin/sh
cat <<END
{}
END
"""


def unit_on(tmp_path: Path, shown: str = "", **files: str) -> unit.Service:
    """With a systemctl that says `shown`."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "systemctl").write_text(SYSTEMCTL.format(shown))
    (tools / "systemctl").chmod(0o755)
    roots = fake_host.made(tmp_path, {"usr/local/bin/modeld": "", **files})
    (tmp_path / "usr/local/bin/modeld").chmod(0o755)
    return unit.look(roots, Path("/etc/modeld/models.yaml"), {"PATH": f"{tools}:/usr/bin:/bin"})


def test_without_a_unit_there_is_a_note(tmp_path: Path) -> None:
    assert codes(unit_on(tmp_path).findings) == {"unit_absent": Level.NOTE}


def test_the_shipped_unit_is_well(tmp_path: Path) -> None:
    shown = "ActiveState=active\nSubState=running\nUnitFileState=enabled\nMainPID=4711\nNRestarts=0\nLimitNOFILE=65536"
    service = unit_on(tmp_path, shown, **{UNIT: SHIPPED})
    assert codes(service.findings) == {"unit": Level.OK}
    assert (service.pid, service.config, service.is_root) == (4711, Path("/etc/modeld/models.yaml"), False)
    assert service.limits is not None
    assert service.limits["Max open files"] == Limit(65536, 65536)
    assert service.limits["Max locked memory"] == Limit(None, None)
    assert service.state_folder == tmp_path / "var" / "lib" / "modeld"
    assert {"/home", "/root", "/tmp"} <= set(service.reader.unseen)
    assert service.keys is None
    credential = "[Service]\nLoadCredential=other:/x\nLoadCredential=modeld-keys:/etc/modeld/keys\n"
    service = unit_on(tmp_path, shown, **{UNIT: SHIPPED, f"{UNIT}.d/keys.conf": credential})
    assert service.keys == tmp_path / "etc" / "modeld" / "keys"
    assert unit.CREDENTIAL == keys.CREDENTIAL
    assert service.reader.uid not in (None, 0)


def test_what_drop_ins_change_is_named_and_not_quoted(tmp_path: Path) -> None:
    secret = f"[Service]\nEnvironment=MODELD_API_KEYS={CANARY}\nProtectHome=no\nSystemCallFilter=\nUser=root\nDynamicUser=no\n"
    service = unit_on(tmp_path, "ActiveState=inactive", **{UNIT: SHIPPED, f"{UNIT}.d/local.conf": secret})
    found = one(service.findings, "unit_differs")
    assert found.facts["settings"] == ["DynamicUser", "Environment", "ProtectHome", "SystemCallFilter", "User"]
    assert service.is_root
    assert codes(service.findings)["unit_root"] is Level.WARNING
    assert codes(service.findings)["unit_disabled"] is Level.NOTE
    assert CANARY not in str(service)


def test_the_configuration_that_any_line_of_the_environment_names_is_known(tmp_path: Path) -> None:
    plain = re.sub(r" --config \S+", "", SHIPPED)
    assert plain != SHIPPED
    more = '[Service]\nEnvironment=A=b "MODELD_CONFIG=/srv/one.yaml"\nEnvironment=MODELD_CONFIG=/srv/two.yaml\nEnvironment=C=d\n'
    service = unit_on(tmp_path, **{UNIT: plain, f"{UNIT}.d/local.conf": more})
    assert service.config == Path("/srv/two.yaml")


def test_what_became_of_the_service(tmp_path: Path) -> None:
    shown = "ActiveState=failed\nResult=exit-code\nExecMainStatus=78\nNRestarts=5\nNeedDaemonReload=yes\nUnitFileState=enabled"
    other = SHIPPED.replace("/usr/local/bin/modeld serve", "/opt/nowhere/modeld serve").replace(
        "/etc/modeld/models", "/etc/other"
    )
    service = unit_on(tmp_path, shown, **{UNIT: other})
    told = codes(service.findings)
    assert (told["unit_failed"], told["unit_program"], told["unit_stale"]) == (Level.PROBLEM, Level.PROBLEM, Level.WARNING)
    assert told["unit_config"] is Level.NOTE
    assert service.config == Path("/etc/other.yaml")
    assert service.pid is None
    again = unit_on(tmp_path, "ActiveState=active\nMainPID=1\nNRestarts=2", **{UNIT: SHIPPED})
    assert codes(again.findings)["unit_restarts"] is Level.WARNING


def test_a_masked_unit_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / UNIT).parent.mkdir(parents=True)
    (tmp_path / UNIT).symlink_to(os.devnull)
    assert codes(unit_on(tmp_path).findings) == {"unit_masked": Level.PROBLEM}


def test_a_systemctl_that_hangs_or_is_not_there_costs_what_it_would_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "TIMEOUT_S", 0.2)
    tools = tmp_path / "tools"
    roots = fake_host.made(tmp_path, {UNIT: SHIPPED, "tools/systemctl": "#!/bin/sh\nexec sleep 60\n"})
    (tools / "systemctl").chmod(0o755)
    for path in (f"{tools}:/usr/bin:/bin", str(tmp_path / "empty")):
        found = unit.look(roots, Path("x"), {"PATH": path}).findings
        assert codes(found)["systemctl_absent"] is Level.NOTE


# -- libraries and speed


def test_each_verdict_on_a_library_has_its_finding() -> None:
    details = {Verdict.RUNS: "runs", Verdict.LACKS: "this CPU lacks amx", Verdict.DIED: "died by SIGILL", Verdict.HUNG: "hung"}
    all_of_them = tuple(Tried(f"v{index}", verdict, details.get(verdict, "x"), 0.1) for index, verdict in enumerate(Verdict))
    told = codes(library.tried(Survey(Path("/x"), all_of_them, "v0", "the first that computes right")))
    assert told == {
        "library_runs": Level.OK,
        "library_lacks": Level.NOTE,
        "library_died": Level.WARNING,
        "library_wrong": Level.WARNING,
        "library_hung": Level.WARNING,
        "library_damaged": Level.WARNING,
        "library_untried": Level.WARNING,
        "library_chosen": Level.OK,
    }
    alone = codes(
        library.tried(Survey(Path("/x"), (Tried("native", Verdict.DIED, "died by SIGILL", 0.1),), None, "the only library"))
    )
    assert alone == {"library_died": Level.PROBLEM, "library_none": Level.PROBLEM}


SPEED = speed.Speed("m.gguf", 1000, 2, 1000.0, 100.0, 600.0, 20.0, "42")


def test_each_outcome_of_the_decode_has_its_finding() -> None:
    def told(answer: Answer[speed.Speed], *, give_way: bool = False) -> dict[str, Level]:
        return codes(speed.measured(answer, give_way=give_way))

    assert told(Answer(SPEED)) == {"decode": Level.OK}
    assert told(Answer(replace(SPEED, said="41"))) == {"decode_wrong": Level.PROBLEM}
    slow = replace(SPEED, prompt=10.0)
    assert told(Answer(slow)) == {"decode": Level.OK, "decode_contended": Level.WARNING}
    assert told(Answer(slow), give_way=True) == {"decode": Level.OK}
    assert told(Answer(None, "was ended by SIGBUS", signal="SIGBUS")) == {"decode_failed": Level.PROBLEM}


# -- the network


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:9000", Address("127.0.0.1", 9000)),
        ("http://[::1]:9000/", Address("::1", 9000)),
        ("https://models.example", Address("models.example", 443, scheme="https")),
        ("unix:/run/modeld/modeld.sock", Address(unix="/run/modeld/modeld.sock")),
    ],
)
def test_addresses_of_daemons(text: str, address: Address) -> None:
    assert network.parse_server(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:8080",
        "ftp://x",
        "unix:here",
        "http://",
        "http://a:x",
        "http://a/behind-a-proxy",
        "https://a?b",
        "http://u:secret@a",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|takes|port|Port|no password") as raised:
        network.parse_server(text)
    assert "secret" not in str(raised.value)


def test_an_address_that_nobody_has(tmp_path: Path) -> None:
    found = network.look(Roots(), Address("192.0.2.1", 1), None, is_ours=True)
    assert codes(found.findings) == {"address_missing": Level.PROBLEM}  # and nobody else's host is asked
    assert codes(network.look(Roots(), Address("127.0.0.1", 0), None, is_ours=True).findings) == {"port_any": Level.OK}
    assert codes(network.look(Roots(), Address("127.0.0.1", 1), None, is_ours=False).findings) == {"unreachable": Level.PROBLEM}
    taken = tmp_path / "file"
    taken.write_text("")
    assert codes(network.look(Roots(), Address(unix=str(taken)), None, is_ours=True).findings) == {"socket_taken": Level.PROBLEM}
    nowhere = network.look(Roots(), Address(unix=str(tmp_path / "no" / "socket")), None, is_ours=True)
    assert codes(nowhere.findings) == {"socket_unwritable": Level.PROBLEM}
    free = network.look(Roots(), Address(unix=str(tmp_path / "socket")), None, is_ours=True)
    assert codes(free.findings) == {"port_free": Level.OK}


def test_what_accepts_and_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # its kernel takes the connection, and nobody reads
        address = Address("127.0.0.1", listener.getsockname()[1])
        found = network.look(Roots(), address, None, is_ours=True)
    assert codes(found.findings) == {"silent": Level.PROBLEM}
    assert found.pid == os.getpid()


def test_a_socket_that_systemd_holds_is_not_connected_to(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"
        roots = fake_host.host(tmp_path, **{"proc/self/net/tcp": line, "proc/1/comm": "systemd\n"})
        (tmp_path / "proc" / "1" / "fd").mkdir()
        (tmp_path / "proc" / "1" / "fd" / "3").symlink_to("socket:[4711]")
        found = network.look(roots, Address("127.0.0.1", port), None, is_ours=True)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert codes(found.findings) == {"socket_activated": Level.NOTE}


AILING = {
    "version": "0.0.9",
    "state": "error",
    "current_model": None,
    "error": {"code": "load_failed", "message": "no memory\x1b[2J"},
    "op": {"step": "mmap", "target_model_id": "a"},
    "config_error": f"line 1: {CANARY}",
    "quarantined": ["b"],
    "uptime_s": 7300.0,
}


@contextlib.contextmanager
def pretended_daemon(status: object, livez: bytes) -> Iterator[Address]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def version_string(self) -> str:
            return "modeld"

        def do_GET(self) -> None:
            body = {"/livez": b"{}", "/livez?verbose": livez, "/status": json.dumps(status).encode()}.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Address("127.0.0.1", int(server.server_address[1]))
        finally:
            server.shutdown()
            thread.join()


def test_all_that_can_be_wrong_with_a_daemon_is_told() -> None:
    with pretended_daemon(AILING, b"[+]ping ok\n[-]switch failed: reason withheld\nlivez check failed\n") as address:
        found = network.look(Roots(), address, None, is_ours=True)
    assert found.daemon
    assert codes(found.findings) == {
        "daemon": Level.OK,
        "daemon_version": Level.WARNING,
        "daemon_error": Level.PROBLEM,
        "daemon_config": Level.PROBLEM,
        "daemon_quarantined": Level.WARNING,
        "daemon_stuck": Level.PROBLEM,
    }
    assert "up for 2.0 h" in one(found.findings, "daemon").found
    assert CANARY not in str(found)


@pytest.mark.parametrize("status", [None, [], "x", {}, {"version": 1, "state": [], "error": [], "op": 3, "uptime_s": "now"}])
def test_a_daemon_that_answers_nonsense_does_not_make_the_check_raise(status: object) -> None:
    with pretended_daemon(status, b"\xff\n[-]\n[-]   \n") as address:
        found = network.look(Roots(), address, None, is_ours=True)
    assert found.daemon
    report.to_text(Report("1", "", (Section("x", found.findings),)))


def test_a_socket_that_nobody_listens_on_any_more(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    assert codes(network.look(Roots(), Address(unix=str(path)), None, is_ours=True).findings) == {"socket_stale": Level.OK}


def as_nobody(look: Callable[[], Iterable[Finding]]) -> dict[str, Level]:
    """Where this is root, by a process that is not."""

    def done() -> list[Finding]:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        return list(look())

    [answer] = ask([Job(done, 30.0)])
    assert answer.value is not None, answer
    return codes(answer.value)


def test_a_port_that_only_root_may_have() -> None:
    first = procfs.number(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start"))
    wanted = {"port_privileged": Level.PROBLEM} if first else {"port_free": Level.OK}
    assert as_nobody(lambda: network.look(Roots(), Address("127.0.0.1", 99), None, is_ours=True).findings) == wanted


def test_files_that_another_user_may_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    path.chmod(0)
    assert as_nobody(lambda: files.look(Roots(), spec(path=path), files.Reader("", None)).findings) == {
        "model_unreadable": Level.PROBLEM
    }
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR)
    assert as_nobody(lambda: state.look(Roots(), folder / "x", by_service=False)).keys() <= {"state_hidden", "state_unwritable"}


# -- all of it, on hosts that are made up


@pytest.fixture
def configuration_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("MODELD_CONFIG", "MODELD_HOST", "MODELD_PORT", "MODELD_LIBRARY", "MODELD_API_KEYS", "MODELD_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    path = tmp_path / "models.yaml"
    models = "".join(f"- {{id: {name}, path: {ROOT}/models/demo-{name}.gguf}}\n" for name in ("calc", "stories"))
    path.write_text(f"server: {{port: 0}}\nmodels:\n{models}")
    return path


def test_a_model_file_whose_file_system_hangs_costs_its_line(configuration_of_two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = files.look

    def look(roots: Roots, model: ModelSpec, reader: files.Reader) -> files.Looked:
        if model.id == "calc":
            signal.pause()
        return looked(roots, model, reader)

    monkeypatch.setattr(files, "look", look)
    made = doctor.examine(doctor.Order(config=configuration_of_two, decode=False, look_s=3.0))
    told = {finding.about: finding.code for section in made.sections if section.name == "models" for finding in section.findings}
    assert told == {"calc": "model_unanswering", "stories": "model"}
    assert made.level is Level.PROBLEM


def test_a_check_that_raises_costs_its_section(configuration_of_two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(_roots: Roots) -> Iterable[Finding]:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(host, "versions", raise_it)
    monkeypatch.setattr(unit, "look", lambda *_: os.kill(os.getpid(), signal.SIGSEGV))
    made = doctor.examine(doctor.Order(config=configuration_of_two, decode=False))
    found = [finding for finding in made.findings if finding.code == "check_failed"]
    assert ["RuntimeError" in found[0].found, "SIGSEGV" in found[1].found] == [True, True]
    assert len(made.sections) == 11
    assert CANARY not in report.to_text(made)


def test_a_container_that_is_too_small_for_what_is_configured(configuration_of_two: Path, tmp_path: Path) -> None:
    groups = fake_host.cgroup_v2(
        tmp_path, "/small", {"memory.max": str(16 * MIB), "memory.current": "0", "pids.max": "64", "cpu.max": "50000 100000"}
    )
    low = fake_host.LIMITS.replace("524288", "256   ")
    roots = fake_host.host(tmp_path, **groups, **{"proc/self/limits": low})
    made = doctor.examine(doctor.Order(config=configuration_of_two, decode=False, roots=roots))
    told = codes(made.findings)
    problems = {code for code, level in told.items() if level is Level.PROBLEM}
    assert problems == {"model_too_big", "descriptors_few", "threads_few"}
    assert told["quota"] is Level.NOTE


# -- the report


REPORT = Report(
    "1.2",
    "2026-01-01T00:00:00Z",
    (
        Section("one", (report.ok("a", "well", n=1), report.note("b", "hm\x1b[2J\n", about="x\u202e"))),
        Section(
            "two", (report.warning("c", "y" * 2000, "do"), report.problem("d", "bad", "do " * 60), report.problem("d", "w", "x"))
        ),
    ),
)


def test_the_text_is_printable_wrapped_and_ends_with_what_is_wrong() -> None:
    text = report.to_text(REPORT)
    assert all(line.isprintable() and len(line) <= report.MAX_CHARS + 40 for line in text.splitlines())
    assert text.endswith("2 problems, 1 warning, 1 note, 1 ok\n  problem: d (2 times)\n  warning: c\n")
    assert REPORT.level is Level.PROBLEM


def test_the_json_has_one_shape() -> None:
    found = report.to_json(REPORT)
    assert list(found) == ["format", "version", "at", "level", "counts", "sections"]
    assert (found["level"], found["counts"]) == ("problem", {"ok": 1, "note": 1, "warning": 1, "problem": 2})
    sections: Any = found["sections"]
    assert sections[0]["findings"][0] == {
        "code": "a", "level": "ok", "about": "", "found": "well", "advice": "", "facts": {"n": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.50 GiB"), (1 << 41, "2.00 TiB")]
)
def test_sizes(n: int, text: str) -> None:
    assert report.size(n) == text
