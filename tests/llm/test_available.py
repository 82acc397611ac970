"""available_bytes: MemAvailable, cgroups of both kinds, what is mapped already; shortage: the sentence with the numbers."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from modeld.llm.available import NO_LIMIT, Available, available_bytes, devices, resident, shortage
from modeld.llm.backend import backend

MIB = 1 << 20
GIB = 1 << 30


class Host:
    """A tree like /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.mounted = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.mounted.mkdir()
        self.memory(available_mib=16 << 10)
        self.member("0::/system.slice/modeld.service")

    def memory(self, *, available_mib: int, mapped_mib: int = 0) -> None:
        (self.proc / "meminfo").write_text(f"MemTotal:       33554432 kB\nMemAvailable:   {available_mib << 10} kB\n")
        (self.proc / "self" / "status").write_text(
            f"Name:\tmodeld\nVmHWM:\t  900000 kB\nRssAnon:\t  102400 kB\nRssFile:\t  {mapped_mib << 10} kB\n"
        )

    def member(self, line: str, *, root: str = "/", kind: str = "cgroup2", options: str = "rw,nsdelegate") -> None:
        (self.proc / "self" / "cgroup").write_text(f"{line}\n")
        (self.proc / "self" / "mountinfo").write_text(
            "25 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
            f"30 25 0:26 {root} {str(self.mounted).replace(' ', chr(92) + '040')} rw,nosuid shared:4 - {kind} {kind} {options}\n"
        )

    def group(self, name: str, **files: int | str) -> None:
        """Numbers are MiB; of `stat` it is the file's text."""
        folder = self.mounted / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in files.items():
            text = str(value * MIB) if isinstance(value, int) else value
            (folder / f"memory.{file}").write_text(f"{text}\n")

    def available(self) -> tuple[float, str]:
        found = available_bytes(self.proc)
        return found.bytes / MIB, found.source


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "a host")  # mountinfo writes a blank as \040


def stat(**values: int) -> str:
    return "\n".join(f"{name} {mib * MIB}" for name, mib in values.items())


def test_without_limits_it_is_what_the_kernel_says(host: Host) -> None:
    host.group("system.slice/modeld.service", max="max", high="max", current=100)
    assert host.available() == (16384, "MemAvailable")


def test_what_this_process_has_mapped_is_not_there_for_others(host: Host) -> None:
    host.memory(available_mib=5000, mapped_mib=3500)
    assert host.available() == (1500, "MemAvailable")
    host.memory(available_mib=1000, mapped_mib=3500)
    assert host.available() == (0, "MemAvailable")


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ({"max": 4096, "high": "max", "current": 1024}, {}, (3072, "cgroup /system.slice/modeld.service")),
        ({"max": 4096, "high": 2048, "current": 1024}, {}, (1024, "cgroup /system.slice/modeld.service")),
        ({"max": "max", "high": "max", "current": 1024}, {"max": 2000, "current": 1500}, (500, "cgroup /system.slice")),
        ({"max": 4096, "current": 1024}, {"max": 2000, "current": 1500}, (500, "cgroup /system.slice")),
        ({"max": 4096, "current": 5000}, {}, (0, "cgroup /system.slice/modeld.service")),
        ({"max": 65536, "current": 1024}, {}, (16384, "MemAvailable")),
        ({"max": "rubbish", "current": 1024}, {}, (16384, "MemAvailable")),
    ],
    ids=["max", "high", "the slice", "the tightest", "over its limit", "a wide limit", "no number"],
)
def test_the_tightest_cgroup_on_the_way_up_counts(
    host: Host, own: dict[str, int | str], above: dict[str, int | str], expected: tuple[float, str]
) -> None:
    host.group("system.slice", **above)
    host.group("system.slice/modeld.service", **own)
    assert host.available() == expected


def test_a_limit_at_the_root_of_a_container_counts(host: Host) -> None:
    host.member("0::/")
    host.group(".", max=1000, current=300)
    assert host.available() == (700, "cgroup /")


def test_page_cache_that_nobody_has_mapped_can_be_taken(host: Host) -> None:
    text = stat(anon=500, inactive_file=300, active_file=1000, file_mapped=900, slab_reclaimable=50, slab_unreclaimable=70)
    host.group("system.slice/modeld.service", max=2000, current=1900, stat=text)
    assert host.available() == (100 + 400 + 50, "cgroup /system.slice/modeld.service")


def test_the_first_kind_of_cgroups_counts_too(host: Host) -> None:
    host.member("4:cpu,memory:/docker/abc", kind="cgroup", options="rw,cpu,memory")
    host.group("docker", limit_in_bytes=str(9223372036854771712), usage_in_bytes=5000)  # no limit
    text = stat(inactive_file=1, total_inactive_file=300, total_active_file=1000, total_mapped_file=900)
    host.group("docker/abc", limit_in_bytes=2000, usage_in_bytes=1900, stat=text)
    assert host.available() == (500, "cgroup /docker/abc")


def test_another_hierarchy_of_the_first_kind_does_not(host: Host) -> None:
    host.member("3:cpuset:/docker/abc", kind="cgroup", options="rw,cpuset")
    host.group("docker/abc", limit_in_bytes=2000, usage_in_bytes=1900)
    assert host.available() == (16384, "MemAvailable")


@pytest.mark.parametrize(
    ("name", "root"), [("/docker/abc", "/docker/abc"), ("/docker/abc", "/docker"), ("/host/only", "/"), ("/../../x", "/")]
)
def test_a_container_sees_its_own_part_of_the_tree(host: Host, name: str, root: str) -> None:
    host.member(f"0::{name}", root=root)
    host.group("abc" if root == "/docker" else ".", max=1000, current=300)
    assert host.available() == (700, f"cgroup {name}")


def test_where_nothing_can_be_read_nothing_is_short(tmp_path: Path) -> None:
    assert available_bytes(tmp_path).bytes == NO_LIMIT
    assert shortage("x", available_bytes(tmp_path), weights_bytes=1 << 50, kv_bytes=0, compute_bytes=0) is None


def test_this_host_has_memory_and_this_process_takes_some() -> None:
    found = available_bytes()
    assert MIB < found.bytes < 1 << 50
    assert found.source == "MemAvailable" or found.source.startswith("cgroup /")
    before = resident()
    assert before.own_bytes > MIB
    assert before.mapped_bytes > MIB
    assert before.peak_bytes >= before.own_bytes + before.mapped_bytes - MIB
    with mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        for page in range(0, len(taken), mmap.PAGESIZE):
            taken[page] = 1
        assert resident().own_bytes - before.own_bytes > 60 * MIB
    assert resident().own_bytes - before.own_bytes < 4 * MIB


def test_ggml_names_the_cpu_and_its_memory() -> None:
    [cpu] = [device for device in devices(backend().lib) if device.kind == "cpu"]
    assert cpu.name == "CPU"
    assert 64 * MIB < cpu.free_bytes <= cpu.total_bytes


def test_a_shortage_is_told_with_its_numbers() -> None:
    needs = {"weights_bytes": 7 * GIB // 2, "kv_bytes": GIB // 2, "compute_bytes": 102 * MIB}
    little = Available(3 * GIB // 2, "MemAvailable")
    assert shortage("big", little, leaving_id="small", freed_bytes=GIB // 2, **needs) == (
        "model big needs about 4.10 GiB (weights 3.50, KV cells 0.50, computing 0.10); "
        "2.00 GiB are available (MemAvailable 1.50 plus 0.50 that model small gives back)"
    )
    assert shortage("big", Available(900 * MIB, "cgroup /a"), weights_bytes=1000 * MIB, kv_bytes=0, compute_bytes=MIB) == (
        "model big needs about 1001.00 MiB (weights 1000.00, KV cells 0.00, computing 1.00); "
        "900.00 MiB are available (cgroup /a 900.00)"
    )


@pytest.mark.parametrize(("freed", "fits"), [(2599, False), (2600, True), (2601, True)])
def test_what_the_leaving_model_gives_back_counts(freed: int, fits: bool) -> None:
    found = shortage(
        "a",
        Available(1500, "MemAvailable"),
        weights_bytes=4000,
        kv_bytes=90,
        compute_bytes=10,
        leaving_id="b",
        freed_bytes=freed,
    )
    assert (found is None) == fits
