"""probe: a file that ends the process that tries it leaves this one as it was, and the reason is told."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeld.errors import OpCancelled, ProbeFailed
from modeld.llm import interpreter
from modeld.llm import probe as probing
from modeld.llm.probe import probe
from modeld.llm.trial import N_CTX, NICENESS, not_finite, small
from modeld.types import ModelSpec
from tests import bad_models, tiny_bert

ROOT = Path(__file__).resolve().parents[2]
STORIES = ModelSpec(id="demo-stories", path=ROOT / "models" / "demo-stories.gguf", n_parallel=16, n_ctx=8192, chat_template="{{")
MIB = 1 << 20
LIMIT = 300 * MIB
INF, NAN = float("inf"), float("nan")


def go_on() -> bool:
    return True


def tried(path: Path, on_wait: Callable[[], bool] = go_on, **settings: Any) -> probing.ProbeResult:
    return probe(ModelSpec(id="tried", path=path), on_wait, **{"timeout_s": 60} | settings)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that a probe starts."""
    processes: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return processes


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A model that never comes: libllama waits in open(2) until somebody writes, and nobody does."""
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    return path


def is_settled(pid: int) -> bool:
    """Whether the process has done all that it does before it opens the model; this limit comes last."""
    return resource.prlimit(pid, resource.RLIMIT_DATA)[0] == LIMIT


def is_gone(process: subprocess.Popen[bytes]) -> bool:
    return process.returncode is not None and not Path(f"/proc/{process.pid}").exists()


# -- what becomes of a file ------------------------------------------------------------------------------------------


def test_a_good_file_passes_and_takes_little_memory() -> None:
    found = probe(STORIES, go_on, timeout_s=60, memory_limit_bytes=256 * MIB)
    assert 0 < found.seconds < 60
    assert MIB < found.own_bytes < 64 * MIB
    assert found.own_bytes < found.peak_bytes < 128 * MIB


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (bad_models.nan_epsilon, r"by SIGABRT: ops.cpp:\d+: GGML_ASSERT\(eps >= 0.0f\) failed"),
        (bad_models.integer_norm, r"by SIGABRT: binary-ops.cpp:\d+: .*unsupported types: .*i32"),
        (bad_models.too_many_layers, r"by SIGABRT: llama-\S+.cpp:\d+: GGML_ASSERT\(.*n_layer.*\) failed"),
    ],
    ids=["in a decode", "in a kernel", "in the load"],
)
def test_a_file_that_aborts_ends_another_process(tmp_path: Path, damage: Callable[[Path], Path], words: str) -> None:
    path = damage(tmp_path / "bad.gguf")
    with pytest.raises(ProbeFailed, match=f"^{path}: the process that tried it ended {words}$"):
        tried(path)


def test_a_file_that_libllama_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(STORIES.path.read_bytes()[:100_000])
    with pytest.raises(ProbeFailed, match=f"cannot load {path}: .*(bounds|truncated|incomplete)"):
        tried(path)


def test_a_file_that_computes_no_numbers_is_refused(tmp_path: Path) -> None:
    path = bad_models.nan_weights(tmp_path / "bad.gguf")
    with pytest.raises(ProbeFailed, match=rf"{path}: it decodes \d+ tokens, but (\d+) of the \1 numbers it gives are NaN"):
        tried(path)


@pytest.mark.parametrize("pooling", [None, "mean", "none"])
def test_a_model_for_embeddings_is_tried_as_one(tmp_path: Path, pooling: str | None) -> None:
    bert = tiny_bert.make(tmp_path / "bert.gguf")
    assert probe(ModelSpec(id="bert", path=bert.path, pooling=pooling), go_on, timeout_s=60).own_bytes > 0


def test_a_path_of_any_bytes_is_tried(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a \xff\n'model'.gguf")
    path.symlink_to(STORIES.path)
    assert tried(path).own_bytes > 0


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ([], None),
        ([1.5, -2.0], None),
        ([-INF, 3.0], None),
        ([NAN, 3.0], "1 of the 2 numbers it gives are NaN or infinite"),
        ([INF, NAN, 0.0], "2 of the 3 numbers it gives are NaN or infinite"),
        ([-INF, -INF], "all of the 2 numbers it gives are minus infinity"),
    ],
)
def test_numbers_that_are_none(numbers: list[float], wrong: str | None) -> None:
    assert not_finite(numbers) == wrong


# -- the process -----------------------------------------------------------------------------------------------------


def test_it_gives_way_to_the_daemon(pipe: Path, started: list[subprocess.Popen[bytes]]) -> None:
    seen: dict[str, Any] = {}

    def look() -> bool:
        [process] = started
        if not is_settled(process.pid):
            return True
        proc = Path(f"/proc/{process.pid}")
        seen["nice"] = os.getpriority(os.PRIO_PROCESS, process.pid)
        seen["session"] = os.getsid(process.pid) == process.pid
        seen["core"] = resource.prlimit(process.pid, resource.RLIMIT_CORE)[0]
        seen["stack"] = resource.prlimit(process.pid, resource.RLIMIT_STACK)[0]
        seen["oom"] = int((proc / "oom_score_adj").read_text())
        seen["blocked"] = int((proc / "status").read_text().partition("SigBlk:")[2].split()[0], 16)
        return False

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as the daemon does
    try:
        with pytest.raises(OpCancelled):
            tried(pipe, look, memory_limit_bytes=LIMIT)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    assert seen == {
        "nice": min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS),
        "session": True,
        "core": 0,
        "stack": 128 * MIB if hard == resource.RLIM_INFINITY else min(128 * MIB, hard),
        "oom": 1000,
        "blocked": 0,
    }


def test_it_takes_none_of_what_the_answering_model_needs() -> None:
    spec = small(
        ModelSpec(id="a", path=Path("a"), n_ctx=0, n_parallel=64, load_mode="mlock", cpu_pinning="on", cache_type_k="q8_0")
    )
    assert (spec.n_ctx, spec.n_parallel, spec.n_threads, spec.cpu_pinning) == (N_CTX, 1, 1, "off")
    assert (spec.load_mode, spec.n_gpu_layers) == ("mmap", 0)
    assert spec.cache_type_k == "q8_0"


def test_it_is_ended_when_nobody_waits_for_it_any_more(pipe: Path, started: list[subprocess.Popen[bytes]]) -> None:
    cancelled: list[float] = []

    def cancel() -> bool:
        if is_settled(started[0].pid):
            cancelled.append(time.monotonic())
        return not cancelled

    with pytest.raises(OpCancelled, match=str(pipe)):
        tried(pipe, cancel, memory_limit_bytes=LIMIT)
    assert time.monotonic() - cancelled[0] < 5
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert all(is_gone(process) for process in started)


def test_it_may_be_ended_before_it_has_begun(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(OpCancelled):
        tried(STORIES.path, lambda: False)
    assert all(is_gone(process) for process in started)


def test_one_that_hangs_is_ended_after_its_time(pipe: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(ProbeFailed, match=f"{pipe}: the process that tried it did not end within 0.5 s and was killed"):
        tried(pipe, timeout_s=0.5)
    assert all(is_gone(process) for process in started)


def test_an_exception_of_who_waits_ends_it_too(pipe: Path, started: list[subprocess.Popen[bytes]]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ZeroDivisionError):
        tried(pipe, lambda: 1 // 0 > 0)
    assert all(is_gone(process) for process in started)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_it_dies_with_its_parent(pipe: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from modeld.llm.probe import probe\n"
        "from modeld.types import ModelSpec\n"
        "start = subprocess.Popen.__init__\n"
        "def told(self, *args, **kwargs):\n"
        "    start(self, *args, **kwargs)\n"
        "    print(self.pid, flush=True)\n"
        "subprocess.Popen.__init__ = told\n"
        "go_on = lambda: print('waits', flush=True) is None\n"
        "probe(ModelSpec(id='a', path=Path(sys.argv[1])), go_on, timeout_s=60, memory_limit_bytes=int(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(pipe), str(LIMIT)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = os.pidfd_open(pid)
        try:
            while not is_settled(pid):
                assert parent.stdout.readline() == "waits\n"
            assert select.select([child], [], [], 0)[0] == []
            parent.kill()
            ended = select.select([child], [], [], 30)[0]
        finally:
            os.close(child)
    assert ended, "it outlives its parent by 30 s"


def test_too_little_memory_is_told_with_the_number() -> None:
    with pytest.raises(ProbeFailed, match=r"\(it was allowed 12 MiB of memory\)$"):
        tried(STORIES.path, memory_limit_bytes=12 * MIB)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, sys; sys.stderr.write('x' * 50_000_000 + '\\nlast words\\n'); os._exit(3)", "with status 3: last words"),
        ("import sys; sys.stdout.write('x' * 50_000_000)", "with status 0"),
        ("import os; os.kill(os.getpid(), 11)", "by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "by SIGKILL, as the kernel ends one when memory is short"),
        ("import os; os.kill(os.getpid(), 40)", "by signal 40"),
        ("import nothing_of_this_name", "with status 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ],
    ids=["floods stderr", "floods stdout", "segfault", "killed", "real-time signal", "a broken installation"],
)
def test_however_it_ends_without_a_report_is_told(monkeypatch: pytest.MonkeyPatch, program: str, words: str) -> None:
    monkeypatch.setattr(interpreter, "_PROGRAM", program)
    with pytest.raises(ProbeFailed, match=f"^{STORIES.path}: the process that tried it ended {words}$"):
        tried(STORIES.path)


def test_a_process_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ProbeFailed, match=r"could not be started: .*No such file"):
        tried(STORIES.path)
