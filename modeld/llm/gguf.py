"""What does a model file say about itself, and would libllama survive it? Read without loading, remembered until it changes.

All files of a model count: the shards of a split one are looked at with the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modeld.llm.architectures import LEARNED_POSITIONS
from modeld.llm.ggufreader import Budget, Identity, identify, open_regular, read_head
from modeld.llm.ggufvalues import BadGguf, Head, Tensor, quant_of
from modeld.llm.modelshape import is_for_embeddings, shape_of
from modeld.llm.shards import further_paths, identities_now, joint_identity, read_shards
from modeld.llm.soundness import n_layers_of, problem_of
from modeld.types import FileFacts, ModelSpec

CELL_PAD = 256  # llama_context rounds the cells of a slot up to a multiple of it


@dataclass(frozen=True, slots=True)
class _Seen:
    first: Identity
    shards: tuple[Path, ...]
    identities: tuple[Identity, ...]
    facts: FileFacts


_seen: dict[Path, _Seen] = {}
# One entry a path, so as many as the registry has. No lock: two threads that miss at once read the same file twice.


def inspect(spec: ModelSpec) -> FileFacts:
    """What the model's file says; why it cannot be loaded as the entry wants it is told in `problem`. Any thread.

    Reads the head of each file once until it changes. Never raises: a missing file is a problem, too.
    """
    facts = _remembered(spec.path)
    if facts.problem is None and (problem := problem_with(spec, facts)) is not None:
        return replace(facts, problem=problem)
    return facts


def files_of(path: Path) -> list[Path]:
    """The files of a model that was inspected, its shards included; the path alone where nothing is known of it."""
    seen = _seen.get(path)
    return [path] if seen is None else [path, *seen.shards]


def problem_with(spec: ModelSpec, facts: FileFacts) -> str | None:
    """Why this entry of the registry cannot run this file, though the file is sound for others; None: nothing is known."""
    n_ctx_train = facts.n_ctx_train
    if n_ctx_train is None:
        return None
    if spec.n_ctx == 0 and n_ctx_train == 0:
        return "n_ctx: 0 takes the model's own, and the file says 0; give a number"
    if facts.learned_positions and spec.embeddings != "on" and spec.pooling is None:
        n_slot = slot_cells(spec, n_ctx_train)
        if n_slot > n_ctx_train:
            return (
                f"n_ctx: a slot would hold {n_slot} tokens ({spec.n_ctx or n_ctx_train} for {spec.n_parallel} slots, in steps "
                f"of {CELL_PAD}), the model has {n_ctx_train} positions, which it has learned; take a smaller n_ctx"
            )
    return None


def slot_cells(spec: ModelSpec, n_ctx_train: int) -> int:
    """KV cells that libllama gives each slot (llama_context's constructor, without a unified cache)."""
    return padded(padded(spec.n_ctx or n_ctx_train) // max(spec.n_parallel, 1))


def padded(n: int) -> int:
    return -(-n // CELL_PAD) * CELL_PAD


def _remembered(path: Path) -> FileFacts:
    try:
        with open_regular(path) as file:
            identity = identify(file)
            seen = _seen.get(path)
            if seen is not None and seen.first == identity and seen.identities == identities_now(seen.shards):
                return seen.facts
            try:
                head = read_head(file, budget := Budget())
            except BadGguf as error:
                seen = _Seen(identity, (), (), FileFacts(identity=identity, size_bytes=identity[2], problem=str(error)))
            else:
                seen = _look(path, identity, head, budget)
    except OSError as error:
        return FileFacts(problem=error.strerror or str(error))
    except ValueError as error:  # a NUL in the path
        return FileFacts(problem=str(error))
    _seen[path] = seen
    return seen.facts


def _look(path: Path, identity: Identity, head: Head, budget: Budget) -> _Seen:
    shards, problem = None, None
    paths: tuple[Path, ...] = ()
    if head.is_cut_off:
        problem = f"cut off: its tensor data ends at byte {head.end_bytes}, the file at {head.size_bytes}"
    else:
        try:
            paths = further_paths(path, head)
            shards = read_shards(paths, head, budget)
        except BadGguf as error:
            problem = str(error)
    tensors = head.tensors if shards is None else shards.tensors
    problem = problem or problem_of(head, tensors)
    identities = shards.identities if shards else identities_now(paths)  # a bad shard is looked at again when it has changed
    facts = FileFacts(
        identity=joint_identity(identity, identities),
        size_bytes=shards.size_bytes if shards else head.size_bytes,
        quant=quant_of(head, tensors),
        family=head.architecture,
        name=head.name,
        n_ctx_train=head.n_ctx_train,
        n_tensors=len(tensors),
        problem=problem,
        n_params=sum(tensor.n_elements for tensor in tensors.values()),
        n_layers=n_layers_of(head),
        learned_positions=_has_learned_positions(head, tensors),
        shape=None if problem else shape_of(head, tensors),
    )
    return _Seen(identity, paths, identities, facts)


def _has_learned_positions(head: Head, tensors: Mapping[str, Tensor]) -> bool:
    """Of a model that generates: one for embeddings is given no text longer than n_ctx_train (llm/embedding.py)."""
    return head.architecture in LEARNED_POSITIONS and "position_embd.weight" in tensors and not is_for_embeddings(head)
