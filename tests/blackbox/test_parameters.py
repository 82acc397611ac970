"""Every parameter of a generation through the socket: each has an effect that would be missing if it went lost on the way.

What the samplers compute is held against numbers in tests/llm/test_sampling.py; here the question is whether the JSON of a
client gets there, and what becomes of text: stops, limits, caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.daemon import Daemon

ONCE = "Once upon a time"
REPETITIVE = "One day the fox was very, very happy. The fox and the fox and the"
GREEDY = {"temperature": 0, "cache_prompt": False}
HOT = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "ignore_eos": True, "max_tokens": 8, "cache_prompt": False}


class Answer(NamedTuple):
    text: str
    reason: str
    n_tokens: int
    n_cached: int


def whole(daemon: Daemon, prompt: object, body: dict[str, Any]) -> Answer:
    status, _, answer = daemon.request("POST", "/v1/completions", {"prompt": prompt, **body})
    assert status == 200, answer
    (choice,), usage = answer["choices"], answer["usage"]
    return _answer(choice["text"], choice["finish_reason"], usage)


def streamed(daemon: Daemon, prompt: object, body: dict[str, Any]) -> Answer:
    options = {"stream_options": {"include_usage": True}}
    with daemon.stream("/v1/completions", {"prompt": prompt, **options, **body}) as stream:
        frames = list(stream)
    assert stream.done
    reasons = [choice["finish_reason"] for frame in frames for choice in frame["choices"]]
    assert [reason for reason in reasons if reason] == reasons[-1:]
    return _answer(stream.text, reasons[-1], frames[-1]["usage"])


def _answer(text: str, reason: str, usage: dict[str, Any]) -> Answer:
    return Answer(text, reason, usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"])


def ask(daemon: Daemon, body: dict[str, Any], prompt: object = ONCE) -> Answer:
    """Both ways, which agree; for what has one answer only."""
    answer = whole(daemon, prompt, body)
    assert streamed(daemon, prompt, body) == answer
    return answer


def texts(daemon: Daemon, body: dict[str, Any], n_seeds: int = 6) -> set[str]:
    return {whole(daemon, ONCE, {**body, "seed": seed}).text for seed in range(n_seeds)}


def pieces(daemon: Daemon, text: str) -> list[tuple[int, str]]:
    tokens = daemon.request("POST", "/tokenize", {"content": text, "with_pieces": True})[2]["tokens"]
    return [(token["id"], token["piece"]) for token in tokens]


# -- sampling -------------------------------------------------------------------------------------------------------------


def test_heat_spreads(daemon: Daemon) -> None:
    assert len(texts(daemon, HOT)) == 6


@pytest.mark.parametrize("narrow", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0}, {"min_p": 1}], ids=str)
def test_narrow_samplers_are_greedy(daemon: Daemon, narrow: dict[str, float]) -> None:
    assert texts(daemon, {**HOT, **narrow}) == {whole(daemon, ONCE, {**HOT, "temperature": 0}).text}


def test_a_small_typical_p_leaves_one_choice_which_is_not_the_best(daemon: Daemon) -> None:
    (only,) = texts(daemon, {**HOT, "typical_p": 1e-6})
    assert only != whole(daemon, ONCE, {**HOT, "temperature": 0}).text


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 3}, {"presence_penalty": 2}, {"frequency_penalty": 2}], ids=str)
def test_penalties_avoid_what_was_said_unless_nothing_is_looked_at(daemon: Daemon, penalty: dict[str, float]) -> None:
    body = {**GREEDY, "max_tokens": 60, "ignore_eos": True}
    plain, varied, blind = (
        whole(daemon, REPETITIVE, {**body, **more}).text
        for more in ({}, {**penalty, "repeat_last_n": -1}, {**penalty, "repeat_last_n": 0})
    )
    assert blind == plain
    assert len(set(pieces(daemon, varied))) > len(set(pieces(daemon, plain)))


def test_a_bias_forces_and_forbids_in_both_notations(daemon: Daemon) -> None:
    (fox, _), (owl, _) = pieces(daemon, " fox owl")
    body = {**GREEDY, "max_tokens": 3}
    assert ask(daemon, {**body, "logit_bias": {str(fox): 100}}).text == " fox fox fox"
    assert ask(daemon, {**body, "logit_bias": [[owl, 100]]}).text == " owl owl owl"
    assert ask(daemon, {**body, "logit_bias": {str(owl): 100, str(fox): 60}}).text == " owl owl owl"
    free = whole(daemon, ONCE, body).text
    for token, piece in pieces(daemon, free):
        for bias in ({str(token): -100}, [[token, -100]], [[token, False]]):
            assert (token, piece) not in pieces(daemon, whole(daemon, ONCE, {**body, "logit_bias": bias}).text)
    none_of_it = [[token, False] for token, _ in pieces(daemon, free)]
    assert not set(pieces(daemon, whole(daemon, ONCE, {**body, "logit_bias": none_of_it}).text)) & set(pieces(daemon, free))


def test_seeds_repeat_and_differ(daemon: Daemon) -> None:
    assert ask(daemon, {**HOT, "seed": 5}) == ask(daemon, {**HOT, "seed": 5}) == ask(daemon, {**HOT, "seed": 5 + 2**32})
    unseeded = {whole(daemon, ONCE, {**HOT, "seed": seed}).text for seed in (None, None, -1, -1)}
    assert len(unseeded) == 4


# -- limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_each_name_of_the_limit_counts_exactly(daemon: Daemon, name: str) -> None:
    long = whole(daemon, ONCE, {**GREEDY, "max_tokens": 20}).text
    for n in (1, 2, 19):
        answer = ask(daemon, {**GREEDY, name: n})
        assert (answer.reason, answer.n_tokens) == ("length", n)
        assert long.startswith(answer.text)


def test_without_a_limit_the_context_is_one(daemon: Daemon) -> None:
    for body in ({}, {"n_predict": -1}, {"max_tokens": 2**31 - 1}):
        answer = whole(daemon, [1] * 500, {"ignore_eos": True, **body})
        assert (answer.reason, answer.n_tokens) == ("length", 512 - 500)


def test_ignore_eos_goes_on_where_the_model_would_end(daemon: Daemon) -> None:
    (end, _), *_ = pieces(daemon, "</s>")
    body = {**GREEDY, "max_tokens": 12, "logit_bias": {str(end): 100}}
    assert ask(daemon, body) == Answer("", "stop", 1, 0)
    bound = ask(daemon, {**body, "ignore_eos": True})
    assert (bound.reason, bound.n_tokens) == ("length", 12)
    assert bound.text == whole(daemon, ONCE, {**GREEDY, "max_tokens": 12}).text


def test_the_cache_is_told_and_changes_nothing(daemon: Daemon) -> None:
    prompt = "Otto the fox lived near a lake. " * 6
    n_prompt = len(pieces(daemon, prompt)) + 1  # and BOS
    body = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
    cold = whole(daemon, prompt, {**body, "cache_prompt": False})
    filling = whole(daemon, prompt, body)
    cached = whole(daemon, prompt, body)
    refused = whole(daemon, prompt, {**body, "cache_prompt": False})
    assert (cold.n_cached, filling.n_cached, cached.n_cached, refused.n_cached) == (0, 0, n_prompt - 1, 0)
    assert cold.text == filling.text == cached.text == refused.text
    assert 16 <= whole(daemon, prompt + "Then", body).n_cached <= n_prompt


# -- stops ----------------------------------------------------------------------------------------------------------------

# Made of parts of the greedy text without any: `{mid}` lies across a boundary of pieces, `{inside}` within `{long}`, ...
STOPS: dict[str, list[str]] = {
    "one string": ["{word}"],
    "never comes": ["\x00never"],
    "at the very first text": ["{first}"],
    "the first piece": ["{piece}"],
    "across a boundary of pieces": ["{mid}"],
    "across many boundaries": ["{long}"],
    "overlapping, the longer begins first": ["{long}", "{inside}"],
    "overlapping, the shorter ends first": ["{inside}", "{long}"],
    "one is the beginning of another": ["{mid}{never}", "{mid}"],
    "begins like it and goes on otherwise": ["{word}\x00", "{mid}\x00", "{long}\x00"],
    "held back at the end": ["{last}\x00"],
    "all of the last text": ["{last}"],
    "sixteen, one of them comes": [f"\x00{i}" for i in range(15)] + ["{mid}"],
    "sixteen, many come": [chr(ord("z") - i) for i in range(16)],
    "as long as allowed": ["{word}" + "x" * 900, "{mid}"],
}


@pytest.fixture(scope="module")
def story(shared: Daemon) -> list[str]:
    """The greedy text of each number of tokens, from 0 on."""
    shared.wait_ready()
    body = {**GREEDY, "ignore_eos": True}
    return ["", *(whole(shared, ONCE, {**body, "max_tokens": n}).text for n in range(1, 41))]


@pytest.mark.parametrize("templates", STOPS.values(), ids=STOPS)
def test_text_ends_before_the_first_stop(daemon: Daemon, story: list[str], templates: list[str]) -> None:
    text, after = story[-1], [len(beginning) for beginning in story]
    marks = {
        "first": text[0],
        "piece": story[1],
        "mid": text[after[3] - 2 : after[3] + 2],
        "long": text[after[4] - 3 : after[8] + 3],
        "inside": text[after[5] - 1 : after[6] + 1],
        "word": text[after[6] + 1 : after[7]],
        "last": text[-4:],
        "never": "\x00",
    }
    stops = [template.format(**marks) for template in templates]
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    # The stop that is complete first ends it; two complete in one step: the one that begins first.
    n_tokens = next((n for n, beginning in enumerate(story) if any(stop in beginning for stop in stops)), 40)
    shown = min((at for stop in stops if (at := story[n_tokens].find(stop)) >= 0), default=len(text))
    answer = ask(daemon, {**GREEDY, "ignore_eos": True, "max_tokens": 40, "stop": stops})
    assert answer == Answer(text[:shown], "stop" if ends else "length", n_tokens, 0)


def test_a_single_string_and_null_are_stops_too(daemon: Daemon, story: list[str]) -> None:
    body = {**GREEDY, "ignore_eos": True, "max_tokens": 40}
    assert ask(daemon, {**body, "stop": "."}).text == story[-1].partition(".")[0]
    assert ask(daemon, {**body, "stop": None}).text == ask(daemon, {**body, "stop": []}).text == story[-1]


@pytest.mark.parametrize("stop", ["本", "é", "\N{GRINNING FACE}", "語é"])
def test_stops_of_characters_that_take_many_tokens(daemon: Daemon, stop: str) -> None:
    """Each byte is a token of its own here; the schema makes the model say them."""
    said = '"日本語é\N{GRINNING FACE}!"'
    body = {**GREEDY, "json_schema": {"const": said[1:-1]}}
    assert ask(daemon, body).text == said
    assert ask(daemon, {**body, "stop": [stop]}).text == said.partition(stop)[0]


def test_bytes_that_are_no_text_show_as_replacements(daemon: Daemon) -> None:
    first_byte_of_two, *_ = daemon.request("POST", "/tokenize", {"content": "é"})[2]["tokens"]
    body = {**GREEDY, "max_tokens": 6, "logit_bias": {str(first_byte_of_two): 100}}
    assert ask(daemon, body) == Answer("\N{REPLACEMENT CHARACTER}" * 6, "length", 6, 0)
