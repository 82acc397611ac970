"""Can libllama make a vocabulary of this file, and tokenize with it? What llama_vocab::impl::load and its tokenizers assert."""

from __future__ import annotations

from modeld.llm.ggufvalues import (
    BOOL,
    FLOAT32,
    INT32,
    KIND_NAMES,
    STRING,
    TOKENS_KEY,
    TYPES_KEY,
    Array,
    BadGguf,
    Head,
    uint32,
)

MODEL_KEY, PRE_KEY, MERGES_KEY = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.merges"
SCORES_KEY = "tokenizer.ggml.scores"

# By tokenizer.ggml.model: the ids of BOS and EOS where the file gives none (-1: there is none), and whether BOS and EOS are
# put around a text where the file does not say.
_DEFAULTS = {
    "llama": (1, 2, True, False), "gpt2": (11, 11, False, False), "hybriddna": (11, 11, False, False),
    "whitespace": (11, 11, False, False), "t5": (-1, 1, False, True), "gemma4": (-1, -1, True, False),
}  # fmt: skip
_BERT_DEFAULTS = {"bos": 101, "seperator": 102}  # sic; both are put around every text, whatever the file says


def n_tokens_of(head: Head) -> int | None:
    """Tokens of the vocabulary; None where the file has none."""
    tokens = head.values.get(TOKENS_KEY)
    return tokens.n if isinstance(tokens, Array) else None


def check_vocabulary(head: Head) -> None:
    """Raises BadGguf."""
    model = _text(head, MODEL_KEY)
    if model is None:
        raise BadGguf(f"{MODEL_KEY} is missing")
    _text(head, PRE_KEY)
    if model in ("no_vocab", "none"):
        return  # Model refuses to load it
    n = _array(head, TOKENS_KEY, (STRING,))
    if not n:
        raise BadGguf(f"{TOKENS_KEY} is {'missing' if n is None else 'empty'}; expected a text for each token")
    if head.repeated is not None:
        first, second = head.repeated.first, head.repeated.second
        raise BadGguf(f"{TOKENS_KEY}: tokens {first} and {second} are both {head.repeated.text!r}; expected no two alike")
    for key, kinds in ((SCORES_KEY, (FLOAT32, INT32)), (TYPES_KEY, (INT32,))):
        n_given = _array(head, key, kinds)
        if n_given is not None and n_given < n:
            raise BadGguf(f"{key} has {n_given} numbers; there are {n} tokens")
    if model == "bert" and head.has_byte_tokens:
        raise BadGguf(f"{TYPES_KEY} has tokens that stand for bytes (6), which a vocabulary of the kind 'bert' cannot have")
    n_merges = _array(head, MERGES_KEY, (STRING,))
    if n_merges is None and model in ("gpt2", "gemma4", "hybriddna", "whitespace") and _text(head, PRE_KEY) != "kimi-k2":
        raise BadGguf(f"{MERGES_KEY} is missing; a vocabulary of the kind {model!r} needs them")
    if model == "bert":
        for name, default in _BERT_DEFAULTS.items():
            _check_end(head, name, default, n)
    elif model in _DEFAULTS:
        _check_ends(head, model, n)


def _check_ends(head: Head, model: str, n_tokens: int) -> None:
    """Whoever puts BOS or EOS around a text asserts that there is one (llama_vocab::impl::tokenize)."""
    bos, eos, adds_bos, adds_eos = _DEFAULTS[model]
    told_bos = _flag(head, "tokenizer.ggml.add_bos_token", adds_bos)
    if told_bos or model == "gemma4":  # which overrides what the file says
        _check_end(head, "bos", bos, n_tokens)
    if _flag(head, "tokenizer.ggml.add_eos_token", adds_eos):
        _check_end(head, "eos", eos, n_tokens)


def _check_end(head: Head, name: str, default: int, n_tokens: int) -> None:
    key = f"tokenizer.ggml.{name}_token_id"
    given = uint32(head, key)
    token = default if given is None or given >= n_tokens else given  # libllama takes its default for a bad one
    if not 0 <= token < n_tokens:
        said = "missing" if given is None else given
        raise BadGguf(f"{key} is {said}: it is to be put around texts, and is none of the {n_tokens} tokens")


def _flag(head: Head, key: str, default: bool) -> bool:
    kind = head.kinds.get(key)
    if kind is None:
        return default
    if kind != BOOL:
        raise BadGguf(f"{key} is of type {KIND_NAMES[kind]}; expected bool")
    return bool(head.values[key])


def _text(head: Head, key: str) -> str | None:
    kind = head.kinds.get(key)
    if kind is not None and kind != STRING:
        raise BadGguf(f"{key} is of type {KIND_NAMES[kind]}; expected string")
    return head.text(key)


def _array(head: Head, key: str, kinds: tuple[int, ...]) -> int | None:
    """How many items it has; None: absent."""
    kind = head.kinds.get(key)
    if kind is None:
        return None
    value = head.values.get(key)
    if not isinstance(value, Array):
        raise BadGguf(f"{key} is of type {KIND_NAMES[kind]}; expected an array")
    if value.kind not in kinds:
        raise BadGguf(f"{key} is an array of {KIND_NAMES[value.kind]}; expected {' or '.join(KIND_NAMES[k] for k in kinds)}")
    return value.n
