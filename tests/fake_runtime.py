"""A runtime without arithmetic: letters of the alphabet, with a gate at each decode, for interleavings.

It obeys the same contract as the real one (tests/engine/test_runtime_contract.py runs on both).
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence

from modeld.errors import InvalidRequest, OpCancelled
from modeld.llm.adapter import NO_TOKEN, Constraint, DecodeAborted, DecodeInvalid, LoadProgress, Sampler, Scored, Span
from modeld.types import ChatMessage, LoadedModel, ModelSpec, SamplingParams, Step, TokenLogprob, Tool, ToolCallFormat

N_VOCAB = 300
EOG = 256  # tokens 0..255 are bytes
MARKER = 257  # of calls
STATE_MAGIC = b"FAKE"


class FakeSampler:
    def __init__(self, runtime: FakeRuntime, constraint: Constraint | None) -> None:
        self.runtime = runtime
        self.constraint = constraint
        self.closed = False
        self.n_sampled = 0
        runtime.open_samplers += 1

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.runtime.open_samplers -= 1


class Gate:
    """Lets decodes through one by one, or all when open. The test waits for a decode to arrive, then lets it pass."""

    def __init__(self) -> None:
        self._cond = threading.Condition()
        self._open = True
        self._passes = 0
        self.n_arrived = 0

    def shut(self) -> None:
        with self._cond:
            self._open = False

    def open(self) -> None:
        with self._cond:
            self._open = True
            self._cond.notify_all()

    def let(self, n: int) -> None:
        with self._cond:
            self._passes += n
            self._cond.notify_all()

    def wait_arrived(self, n: int, timeout_s: float = 10) -> None:
        with self._cond:
            assert self._cond.wait_for(lambda: self.n_arrived >= n, timeout_s), f"decode {n} never came, {self.n_arrived} did"

    def pass_through(self, aborted: threading.Event) -> None:
        with self._cond:
            self.n_arrived += 1
            self._cond.notify_all()
            while not (self._open or self._passes or aborted.is_set()):
                self._cond.wait(0.01)  # the abort flag has no condition: it is a byte that C looks at
            if aborted.is_set():
                raise DecodeAborted("aborted")
            if not self._open:
                self._passes -= 1


class FakeRuntime:
    """Generates for each sequence the bytes of `script` (then EOG), position by position after its prompt."""

    def __init__(
        self,
        *,
        n_slots: int = 4,
        n_ctx_slot: int = 64,
        n_batch: int = 32,
        script: Sequence[int] = b"abcdefghij",
        endless: bool = False,
        tool_call_format: ToolCallFormat | None = None,
        shows_tools: bool = True,
    ) -> None:
        self.n_slots, self.n_ctx_slot, self.n_batch = n_slots, n_ctx_slot, n_batch
        self.n_outputs = n_slots + 2
        self.script, self.endless = script, endless
        self.tool_call_format, self.shows_tools = tool_call_format, shows_tools
        self.gate = Gate()
        self.fail_next: Exception | None = None
        self.pooling: str | None = None
        self.batches: list[list[Span]] = []
        self.cells: dict[int, list[int]] = {}
        self.copies: list[tuple[int, int]] = []
        self.restored: list[int] = []  # slots
        self._copying: list[tuple[int, int]] = []  # done with the next decode
        self.open_samplers = 0
        self.closed = False
        self._aborted = threading.Event()
        self._engine_thread: int | None = None

    def describe(self) -> LoadedModel:
        return LoadedModel(
            id="fake",
            name="fake",
            path="/fake",
            description="fake",
            n_params=0,
            n_vocab=N_VOCAB,
            n_ctx=self.n_ctx_slot * self.n_slots,
            n_ctx_slot=self.n_ctx_slot,
            n_ctx_train=64,
            n_slots=self.n_slots,
            n_batch=self.n_batch,
            n_threads=1,
            chat_template=None,
            bos_piece="",
            eos_piece="",
            loaded_at=time.time(),
            n_embd=2,
            pooling=self.pooling,
            shows_tools=self.shows_tools,
            tool_call_format=self.tool_call_format,
        )

    def decode(self, spans: Sequence[Span]) -> None:
        assert not self.closed
        self._engine_thread = self._engine_thread or threading.get_ident()
        assert self._engine_thread == threading.get_ident(), "decode on two threads"
        if sum(len(span.tokens) for span in spans) > self.n_batch:
            raise DecodeInvalid("too many rows")
        n_outputs = sum(len(span.tokens) if span.every_output else span.output for span in spans)
        assert n_outputs <= self.n_outputs, "more rows with logits than there is room for"
        self.batches.append(list(spans))
        self._copying = []
        self.gate.pass_through(self._aborted)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        for span in spans:
            cells = self.cells.setdefault(span.slot, [])
            assert span.pos == len(cells), f"slot {span.slot}: row at {span.pos}, {len(cells)} cells are filled"
            cells.extend(span.tokens)
            assert len(cells) <= self.n_ctx_slot

    def sampler(self, params: SamplingParams, seed: int, history: Sequence[int], constraint: Constraint | None = None) -> Sampler:
        return FakeSampler(self, constraint)

    def sample(self, wanted: Sequence[tuple[Sampler, int]]) -> list[int]:
        tokens = []
        for sampler, index in wanted:
            span = self.batches[-1][index]
            assert isinstance(sampler, FakeSampler)
            assert span.output
            assert not sampler.closed
            n, sampler.n_sampled = sampler.n_sampled, sampler.n_sampled + 1
            token = self.script[n % len(self.script)] if self.endless or n < len(self.script) else EOG
            tokens.append(token if sampler.constraint is None else self._constrained(token, sampler.constraint))
        return tokens

    def _constrained(self, token: int, constraint: Constraint) -> int:
        """The token if it is allowed, else the first that is."""
        if not (constraint.may_end if token == EOG else constraint.allows(bytes([token]))):
            first = next((byte for byte in range(256) if constraint.allows(bytes([byte]))), NO_TOKEN)
            token = EOG if constraint.may_end else first
        if token not in (EOG, NO_TOKEN):
            constraint.accept(bytes([token]))
        return token

    def logprobs(self, wanted: Sequence[Scored]) -> list[TokenLogprob]:
        """Of token t: -t. The likeliest tokens are 0, 1, 2, ..."""
        for scored in wanted:
            span = self.batches[-1][scored.span]
            assert span.every_output or (span.output and scored.row in (-1, len(span.tokens) - 1)), "that row has no logits"
        return [
            TokenLogprob(self.piece(s.token), -float(s.token), tuple((self.piece(t), -float(t)) for t in range(s.n_top)))
            for s in wanted
        ]

    def vectors(self, slots: Sequence[int]) -> list[array[float]]:
        """The sum of the input's tokens, and how many they are."""
        assert {span.slot for span in self.batches[-1] if span.output} >= set(slots)
        return [array("f", (sum(self.cells[slot]), len(self.cells[slot]))) for slot in slots]

    def forget(self, slot: int) -> None:
        self.cells.pop(slot, None)

    can_cut = True
    waited_s = 0.0
    row_block = 1

    def truncate(self, slot: int, n_tokens: int) -> bool:
        if not self.can_cut:
            return False
        del self.cells.setdefault(slot, [])[n_tokens:]
        return True

    def copy(self, source: int, target: int) -> None:
        assert self.can_cut
        assert source != target
        self.cells[target] = list(self.cells.get(source, ()))
        self.copies.append((source, target))
        self._copying.append((source, target))

    def is_copying(self, slot: int) -> bool:
        return any(slot in copy for copy in self._copying)

    def saved_bytes(self, slot: int) -> int:
        if not self.cells.get(slot) or any(slot == target for _, target in self._copying):
            return 0
        return len(STATE_MAGIC) + 4 * len(self.cells[slot])

    def save(self, slot: int) -> bytearray:
        assert not self.closed
        assert self.saved_bytes(slot)
        return bytearray(STATE_MAGIC + array("i", self.cells[slot]).tobytes())

    def restore(self, slot: int, state: bytearray) -> bool:
        cells = array("i", bytes(state[len(STATE_MAGIC) :]))
        fits = len(cells) <= self.n_ctx_slot and state.startswith(STATE_MAGIC)
        self.cells.pop(slot, None)
        if not fits or self.is_copying(slot):
            return False
        self.cells[slot] = list(cells)
        self.restored.append(slot)
        return True

    def n_past(self, slot: int) -> int:
        return len(self.cells.get(slot, ()))

    def piece_or_eog(self, token: int, *, markers: bool = False) -> bytes | None:
        if token == MARKER:
            return b"[TOOL_CALLS]" if markers else b""
        return None if token in (EOG, NO_TOKEN) else bytes([token])

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < EOG else b"<eog>"

    def close(self) -> None:
        assert not self.closed
        assert self.open_samplers == 0
        self.closed = True

    def set_abort(self, on: bool) -> None:
        (self._aborted.set if on else self._aborted.clear)()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def longest_piece(self) -> int:
        return 1

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return bytes(tokens)

    def check_tokens(self, tokens: Sequence[int]) -> None:
        if any(not 0 <= token < N_VOCAB for token in tokens):
            raise InvalidRequest("token outside the vocabulary")

    def prepare(self, params: SamplingParams, *, constrained: bool = False) -> None:
        pass

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        return "".join([tool.name for tool in tools] + [message.content or "" for message in messages])


def load_fake(runtime: FakeRuntime, spec: ModelSpec, on_progress: LoadProgress) -> FakeRuntime:
    """A factory for EngineRunner, with progress as the real one reports it."""
    for pct in (0, 50, 100):
        if not on_progress(Step.MMAP, pct):
            raise OpCancelled("cancelled")
    return runtime
