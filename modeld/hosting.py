"""What does the manager ask of llm/ and the machine, and who answers? ModelHost: opens models, checks files, counts memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from modeld.engine import counts
from modeld.engine.kept import CellStore
from modeld.engine.runner import EngineRunner
from modeld.llm.available import Available, Device, available_bytes, devices, resident, shortage
from modeld.llm.backend import backend
from modeld.llm.digest import verify_sha256
from modeld.llm.footprint import Footprint, estimate
from modeld.llm.gguf import files_of, inspect
from modeld.llm.memory import give_back_freed_memory
from modeld.llm.probe import probe
from modeld.llm.readahead import read_ahead
from modeld.llm.runtime import LlamaRuntime
from modeld.manager.runner import Host, LoadProgress, OnDeath, Runner
from modeld.types import CellFigures, EngineFigures, ModelSpec, Step

log = logging.getLogger("modeld.switch")

PROBE_TIMEOUT_S = 600.0  # a large file from a slow disk; who waits can cancel
# What the trial may take beyond the estimate of its own small context: libllama's tables, the interpreter.
PROBE_SLACK_BYTES = 1 << 30


class ModelHost:
    """Opens runners for the manager, and keeps what their conversations have computed."""

    def __init__(self, *, queue_size: int, kv_keep_bytes: int) -> None:
        self._queue_size = queue_size
        self._cells = CellStore(kv_keep_bytes)
        self._lock = threading.Lock()
        # Guards the two below.
        self._runners: list[EngineRunner] = []  # in memory
        self._gone = counts.NONE  # what those before them have done

    def host(self) -> Host:
        return Host(
            inspect=inspect,
            verify=self._verify,
            probe=self._probe,
            read_ahead=self._read_ahead,
            fits=self._fits,
            has_room=lambda spec: estimate(spec) is not None and self._fits(spec, None) is None,
            give_back=give_back_freed_memory,
            resident_bytes=lambda: resident().own_bytes,
            figures=self.figures,
        )

    def figures(self) -> tuple[EngineFigures, CellFigures]:
        """What engines have done since the start, and the cells there are now. Any thread; never waits for one that computes."""
        with self._lock:
            done = counts.total([self._gone, *(runner.figures() for runner in self._runners)])
            cells = [runner.n_cells() for runner in self._runners]
        used, total = (sum(column) for column in zip(*cells, strict=True)) if cells else (0, 0)
        return done, CellFigures(used, total, self._cells.n_bytes)

    def keep(self, n_bytes: int) -> None:
        """Another budget for kept cells, from the next model that leaves on."""
        self._cells.budget_bytes = n_bytes

    def open(self, spec: ModelSpec, on_progress: LoadProgress, on_death: OnDeath) -> Runner:
        """On the load's thread; an OpenRunner."""
        kept = self._cells.of(_cells_key(spec))
        try:
            runner = _CountedRunner(spec, LlamaRuntime, on_progress, on_death, queue_size=self._queue_size, kept=kept)
            runner.on_free = self._count_out
            with self._lock:
                self._runners.append(runner)
            return runner
        finally:
            on_progress(Step.MMAP, 0)  # a load that failed before it asked has not waited for the old model's memory yet
            give_back_freed_memory()

    def _count_out(self, runner: EngineRunner) -> None:
        """Its threads have ended: it does no more."""
        with self._lock:
            self._runners.remove(runner)
            self._gone = counts.total([self._gone, runner.figures()])

    def _verify(self, spec: ModelSpec, on_progress: Callable[[int], bool]) -> None:
        if spec.sha256 is not None:
            verify_sha256(spec.path, spec.sha256, on_progress)

    def _probe(self, spec: ModelSpec, go_on: Callable[[], bool]) -> None:
        needed = estimate(spec)
        limit = None if needed is None else needed.total + PROBE_SLACK_BYTES
        result = probe(spec, go_on, timeout_s=PROBE_TIMEOUT_S, memory_limit_bytes=limit)
        log.info(
            "a process of its own has decoded the file",
            extra={"model_id": spec.id, "ms": round(result.seconds * 1000, 3), "peak_bytes": result.peak_bytes},
        )

    def _read_ahead(self, spec: ModelSpec, on_progress: Callable[[int, int], bool]) -> None:
        """Left out where the memory would not hold the file: what is read first would be gone before the last comes."""
        room = available_bytes()

        def told(done: int, total: int) -> bool:
            if done == total:
                return False  # all of it is cached: nothing to tell, nothing to read
            if total - done > room.bytes:
                log.info(
                    "the file is not read ahead: %d bytes are missing, %d are available (%s)",
                    total - done,
                    room.bytes,
                    room.source,
                    extra={"model_id": spec.id},
                )
                return False
            return on_progress(done, total)

        inspect(spec)  # which knows the shards
        read_ahead(files_of(spec.path), told)

    def _fits(self, spec: ModelSpec, leaving: ModelSpec | None) -> str | None:
        needed = estimate(spec)
        if needed is None:
            return None  # nothing is known: nothing speaks against it
        freed = estimate(leaving) if leaving is not None else None
        gpus = [device for device in devices(backend().lib) if device.kind == "gpu"]
        return lack(spec, needed, leaving, freed, available_bytes(), gpus)


def lack(
    spec: ModelSpec,
    needed: Footprint,
    leaving: ModelSpec | None,
    freed: Footprint | None,
    host: Available,
    gpus: Sequence[Device],
) -> str | None:
    """Which memory is too small for the model, in words; None: it fits. Pure."""
    if gpus and spec.n_gpu_layers != 0:
        if spec.n_gpu_layers > 0:
            return None  # how much goes where is libllama's to say
        free = Available(sum(device.free_bytes for device in gpus), " and ".join(device.name for device in gpus))
        return _lack(spec, needed, leaving, freed, free)
    return _lack(spec, needed, leaving, freed, host)


def _lack(spec: ModelSpec, needed: Footprint, leaving: ModelSpec | None, freed: Footprint | None, room: Available) -> str | None:
    return shortage(
        spec.id,
        room,
        weights_bytes=needed.weights_bytes,
        kv_bytes=needed.kv_bytes,
        compute_bytes=needed.compute_bytes,
        leaving_id=leaving.id if leaving is not None else None,
        freed_bytes=freed.total if freed is not None else 0,
    )


class _CountedRunner(EngineRunner):
    """A runner that leaves its cells behind when it is freed, and tells that it goes."""

    on_free: Callable[[EngineRunner], None]  # set by who opened it

    def free(self) -> None:
        try:
            self.keep_cells()
        except Exception:
            log.exception("the cells of a model that leaves could not be kept", extra={"model_id": self.spec.id})
        self.on_free(self)
        super().free()


def _cells_key(spec: ModelSpec) -> tuple[object, ...]:
    """All that a sequence's cells depend on: the file, and how the context holds them."""
    return (
        inspect(spec).identity,
        spec.n_parallel,  # libllama writes the number of streams into the state
        spec.cache_type_k,
        spec.cache_type_v,
        spec.flash_attn,
        spec.n_gpu_layers,
        spec.split_mode,
        spec.main_gpu,
    )
