"""What does a conversation cost that another model has interrupted? Its next answer after a switch away and back, against B's.

Counted from asking for the model again, so its load is in it. modeld restores the cells that it kept when the model left;
llama-server, with its defaults, reads the whole conversation anew. What modeld answers is compared with another modeld that is
never switched and gets the same two requests.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import load
from bench.servers import Server, said
from bench.switching import GREEDY, N_TOKENS, call, in_turn, settings_of, start_servers, switch_and_ask, two_models

N_WORDS = 600
NEXT_WORDS = 12
TIE = 1e-2  # of two logits: so near to each other, another order of the same sums may choose the other


def complete(server: Server, model: str, prompt: str, **extra: object) -> dict[str, Any]:
    """The choice of an answer that is not streamed."""
    body = {"model": model, "prompt": prompt, "max_tokens": N_TOKENS, **GREEDY, **extra}
    return dict(call(server.address, "POST", "/v1/completions", body)["choices"][0])


def interrupted(server: Server, model: str, other: str, first: str, following: str) -> dict[str, Any]:
    """The conversation's first answer, one of the other model, and what the next one took after it."""
    server.resume()
    try:
        answer = complete(server, model, first)["text"]
        switch_and_ask(server, other, "Once upon a time")
        server.rest()  # whoever talks to the other model does not come back within the same second
        took, request = switch_and_ask(server, model, first + answer + following)
    finally:
        server.pause()
    return {"answer": answer, "text": request.text, "first_s": took.first_s, "end_s": took.end_s, "ready_s": took.ready_s}


def uninterrupted(server: Server, model: str, first: str, answer: str, following: str) -> dict[str, Any]:
    """The next answer's choice, with the two best of each token."""
    server.resume()
    try:
        complete(server, model, first)
        return complete(server, model, first + answer + following, logprobs=2)
    finally:
        server.pause()


def tie_at(choice: dict[str, Any], text: str) -> float | None:
    """None: `text` is what the choice says. Else how far apart the two best logits are where they part.

    Of logprobs, whose differences are those of the logits.
    """
    if choice["text"] == text:
        return None
    logprobs, n_same = choice["logprobs"], 0
    while choice["text"][:n_same] == text[:n_same]:
        n_same += 1
    starts = [at for at, offset in enumerate(logprobs["text_offset"]) if offset - logprobs["text_offset"][0] < n_same]
    best, second = sorted(logprobs["top_logprobs"][starts[-1]].values(), reverse=True)[:2]
    return float(best - second)


def measure(repeat: int, flash_attn: str) -> dict[str, Any]:
    """`repeat` conversations nobody has seen before, each on modeld and on B. Raises RequestFailed when an answer is another."""
    models = two_models()
    settings = replace(settings_of(models), flash_attn=flash_attn)
    rounds = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        *servers, witness = start_servers(stack, settings, Path(folder), ("modeld", "B", "modeld"))
        for i in range(repeat):
            rng = random.Random(i)
            first, following = f"{load.words(rng, N_WORDS)}.", f" And {load.words(rng, NEXT_WORDS)}?"
            model, other = models[0].stem, models[1].stem
            found = {}
            for rival in in_turn(i, [server.name for server in servers]):
                server = next(server for server in servers if server.name == rival)
                found[rival] = interrupted(server, model, other, first, following)
            ours, theirs = found["modeld"], found["B"]
            tie = tie_at(uninterrupted(witness, model, first, ours["answer"], following), ours["text"])
            if tie is not None and tie > TIE:
                raise load.RequestFailed(f"the answer after a switch is another one, and its logits are {tie:g} apart")
            row = {f"{name}_{figure}": found[name][figure] for name in found for figure in ("first_s", "end_s")}
            rounds.append({**row, "modeld_ready_s": ours["ready_s"], "tie": tie, "as_B": ours["text"] == theirs["text"]})
        commands = {server.name: said(server.command) for server in servers}
    figures = ("modeld_first_s", "modeld_end_s", "modeld_ready_s", "B_first_s", "B_end_s")
    ratios = {f: [round(each[f"modeld_{f}"] / each[f"B_{f}"], 3) for each in rounds] for f in ("first_s", "end_s")}
    return {
        "words": N_WORDS,
        "flash_attn": flash_attn,
        **{figure: round(statistics.median(each[figure] for each in rounds), 4) for figure in figures},
        "ratio": {figure: round(statistics.median(values), 3) for figure, values in ratios.items()},
        "ratios": ratios,
        "same_as_uninterrupted": sum(each["tie"] is None for each in rounds),
        "rounds": [{k: round(v, 4) if isinstance(v, float) else v for k, v in each.items()} for each in rounds],
        "commands": commands,
    }
