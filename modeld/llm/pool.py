"""On which threads does a context compute, and when is it its turn? Pools that equal plans share; one decode at a time.

Two pools on the same cores spin against each other: two models that generated at once gave a third to a half of what one gives
alone (`python -m bench together`). So contexts take turns, decode by decode, whichever pool they have.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable

from modeld.errors import LoadFailed
from modeld.llm import libllama as C
from modeld.llm.backend import Backend
from modeld.llm.cores import ComputePlan
from modeld.llm.handles import Handle

_POLL = 50  # how long an idle pool thread spins before it sleeps; ggml's own default


class ThreadPool(Handle):
    """ggml's compute threads, each on a core of its own where the plan says which.

    Unpinned, two of them can land on one core and spin against each other for a whole run (facts/llama.md). It starts
    paused: the thread that decodes first, an engine's, then takes the last core for itself, and not the thread that
    makes the pool, whose children would inherit the binding.
    """

    kind = "thread pool"

    def __init__(self, backend: Backend, plan: ComputePlan) -> None:
        lib = backend.lib
        params = C.ggml_threadpool_params()
        lib.ggml_threadpool_params_init(ctypes.byref(params), plan.n_threads)
        for core in plan.cores:
            params.cpumask[core] = True
        params.strict_cpu = bool(plan.cores)
        params.poll = _POLL
        params.paused = True
        check_threads(plan.n_threads)
        raw = lib.ggml_threadpool_new(ctypes.byref(params))
        if not raw:
            raise LoadFailed(f"ggml could not make a pool of {plan.n_threads} threads")
        super().__init__(raw, lib.ggml_threadpool_free)
        self._pause = lib.ggml_threadpool_pause
        self.plan = plan
        self.n_users = 0  # guarded by _pools_lock

    def pause(self) -> None:
        """Put its threads to sleep until the next graph, whose thread is then bound to its core (ggml_graph_compute_kickoff).

        Not while it computes: its threads look for it between two graphs.
        """
        self._pause(self)


def check_threads(n_threads: int) -> None:
    """Raise LoadFailed where the system refuses so many more.

    libllama ends the process then, both where it loads (a std::thread that is destroyed joinable) and where it makes a pool
    (ggml-cpu.c, GGML_ASSERT(rc == 0)). So as many are made here before, at once, and ended: a limit that has been reached shows.
    """
    go = threading.Event()
    made: list[threading.Thread] = []
    try:
        for _ in range(n_threads):
            made.append(threading.Thread(target=go.wait, name="modeld-trial"))
            made[-1].start()
    except RuntimeError as error:
        made.pop()
        raise LoadFailed(f"the system refuses {n_threads} more threads: {error}") from error
    finally:
        go.set()
        for thread in made:
            thread.join()


_pools_lock = threading.Lock()
# Guards the two below, and that no pool is freed while it is paused. Not held while threads are made or joined.
_pools: dict[ComputePlan, ThreadPool] = {}
_awake: ThreadPool | None = None  # that computed last: its threads may be spinning


def _pool_for(backend: Backend, plan: ComputePlan) -> ThreadPool:
    with _pools_lock:
        if plan in _pools:
            _pools[plan].n_users += 1
            return _pools[plan]
    made = ThreadPool(backend, plan)
    with _pools_lock:
        pool = _pools.setdefault(plan, made)
        pool.n_users += 1
    if pool is not made:  # another context was faster
        made.close()
    return pool


def _give_back(pool: ThreadPool) -> None:
    global _awake
    with _pools_lock:
        pool.n_users -= 1
        if pool.n_users:
            return
        del _pools[pool.plan]
        if _awake is pool:
            _awake = None
    pool.close()


def _wake(pool: ThreadPool, *, bind: bool) -> None:
    """The pool is about to compute, in its turn: the one before gives up the cores. `bind`: the calling thread is new to it."""
    global _awake
    with _pools_lock:
        if _awake is not None and _awake is not pool:
            _awake.pause()
        _awake = pool
        if bind:
            pool.pause()


class _Waiter:
    def __init__(self, who: object) -> None:
        self.who = who
        self.gate = threading.Lock()
        self.gate.acquire()
        self.is_granted = False


class Turns:
    """First come, first served. Who waits sleeps; the turn is handed to the next one, so that none comes twice before another.

    A lock alone is taken again by whoever gave it back, before those that wait for it have woken.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guards both below.
        self._is_taken = False
        self._waiting: deque[_Waiter] = deque()

    def take(self, who: object, is_off: Callable[[], bool]) -> bool:
        """Wait for the turn. False: it was given up, before (`is_off`) or meanwhile."""
        with self._lock:
            if is_off():
                return False
            if not self._is_taken:
                self._is_taken = True
                return True
            waiter = _Waiter(who)
            self._waiting.append(waiter)
        waiter.gate.acquire()
        return waiter.is_granted

    def pass_on(self) -> None:
        """End the own turn."""
        with self._lock:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.is_granted = True
                waiter.gate.release()
            else:
                self._is_taken = False

    def give_up(self, who: object) -> None:
        """Let it wait no longer, if it does; `is_off` says so already. Any thread."""
        with self._lock:
            for waiter in self._waiting:
                if waiter.who is who:
                    self._waiting.remove(waiter)
                    waiter.gate.release()
                    return


_turns = Turns()


class PoolShare:
    """One context's part in a pool, and in the turns. Closed by its owner, after the context."""

    def __init__(self, backend: Backend, plan: ComputePlan, is_off: Callable[[], bool]) -> None:
        """`is_off`: whether the context is to compute nothing now. Raises LoadFailed."""
        self.pool = _pool_for(backend, plan)
        self.waited_s = 0.0  # for the last turn
        self._is_off = is_off
        self._is_bound = False  # the thread that computes for this context has its core
        self._is_closed = False

    def begin(self) -> bool:
        """Wait for the turn, after which end() is to follow. False: it is_off, or came to be while it waited. One thread."""
        start = time.monotonic()
        if not _turns.take(self, self._is_off):
            return False
        self.waited_s = time.monotonic() - start
        if not self._is_bound or _awake is not self.pool:  # none but who has the turn sets that to a pool
            _wake(self.pool, bind=not self._is_bound)
            self._is_bound = True
        return True

    def end(self) -> None:
        _turns.pass_on()

    def give_up(self) -> None:
        """Make a waiting begin() return False; is_off is so from before. Any thread."""
        _turns.give_up(self)

    def close(self) -> None:
        """Give the pool back; the last one frees it. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            _give_back(self.pool)
