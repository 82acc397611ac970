"""What is counted comes out as both of Prometheus' texts, and strict readers of them agree about it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from modeld.metrics import Buckets, Family, Registry, Sample, by_label, counter, gauge, render, wants_openmetrics
from modeld.process import ProcessFigures
from modeld.types import Distribution

PARSERS: list[tuple[bool, Callable[[str], Iterable[object]]]] = [
    (False, text_parser.text_string_to_metric_families),
    (True, openmetrics_parser.text_string_to_metric_families),
]


def parsed(families: Iterable[Family], *, openmetrics: bool) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels."""
    parse = dict(PARSERS)[openmetrics]
    found = {}
    for family in parse(render(families, openmetrics=openmetrics).decode()):
        for sample in family.samples:  # type: ignore[attr-defined]
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@pytest.mark.parametrize("openmetrics", [False, True])
def test_both_texts_say_the_same_to_strict_readers(openmetrics: bool) -> None:
    families = [
        counter("made", "Things.", 3),
        gauge("size_bytes", "What they take.", 2.5),
        by_label("gauge", "state", "Which one.", ("state",), {("ready",): 1, ("error",): 0}),
        Family("wait_seconds", "histogram", "Waits.", ("who",), (Sample(("a",), Distribution((0.1, 1.0), (2, 0, 1), 7.25)),)),
    ]
    assert parsed(families, openmetrics=openmetrics) == {
        key("made_total"): 3,
        key("size_bytes"): 2.5,
        key("state", state="ready"): 1,
        key("state", state="error"): 0,
        key("wait_seconds_bucket", who="a", le="0.1"): 2,
        key("wait_seconds_bucket", who="a", le="1.0"): 2,
        key("wait_seconds_bucket", who="a", le="+Inf"): 3,
        key("wait_seconds_sum", who="a"): 7.25,
        key("wait_seconds_count", who="a"): 3,
    }


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb", "\\n", "ä€", ""])
def test_a_label_comes_back_as_it_was(openmetrics: bool, value: str) -> None:
    family = by_label("gauge", "thing", f"Of {value}.", ("of",), {(value,): 1})
    assert parsed([family], openmetrics=openmetrics) == {key("thing", of=value): 1}


@pytest.mark.parametrize("value", [0, 1, -1, 0.1, 1e300, 1e-9, 2**53, 12345678.25, math.inf])
def test_a_number_comes_back_as_it_was(value: float) -> None:
    for openmetrics, _ in PARSERS:
        assert parsed([gauge("thing", "Of it.", value)], openmetrics=openmetrics) == {key("thing"): value}


def test_openmetrics_names_the_unit_and_ends_with_its_mark() -> None:
    text = render([counter("work_seconds", "Work.", 1.5)], openmetrics=True).decode()
    assert text == (
        "# HELP work_seconds Work.\n# TYPE work_seconds counter\n# UNIT work_seconds seconds\nwork_seconds_total 1.5\n# EOF\n"
    )
    text = render([counter("work_seconds", "Work.", 1.5)], openmetrics=False).decode()
    assert text == "# HELP work_seconds_total Work.\n# TYPE work_seconds_total counter\nwork_seconds_total 1.5\n"


def test_an_observation_falls_into_the_bucket_whose_end_it_does_not_exceed() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        buckets.observe(value)
    buckets.observe(9.0, 3)
    assert buckets.read() == Distribution((1.0, 2.0), (2, 2, 4), 34.5)
    assert buckets.read().n == 8


def test_what_many_threads_count_is_all_there() -> None:
    registry = Registry()
    made, waits = registry.counter("made", "Things.", "by"), registry.histogram("wait_seconds", "Waits.", (1.0,))

    def work() -> None:
        for _ in range(2000):
            made.add(1, "x")
            waits.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = parsed(registry.read(), openmetrics=True)
    assert found[key("made_total", by="x")] == 8000
    assert (found[key("wait_seconds_count")], found[key("wait_seconds_sum")]) == (8000, 4000)


def test_what_has_no_labels_is_there_before_anything_happened() -> None:
    registry = Registry()
    registry.counter("made", "Things.")
    registry.histogram("wait_seconds", "Waits.", (1.0,))
    found = parsed(registry.read(), openmetrics=False)
    assert found[key("made_total")] == found[key("wait_seconds_count")] == 0


def test_a_collector_is_asked_at_each_scrape() -> None:
    registry, values = Registry(), iter((1, 2))
    registry.collect(lambda: (gauge("thing", "Now.", next(values)),))
    assert [parsed(registry.read(), openmetrics=True)[key("thing")] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ('application/openmetrics-text;version="1.0.0"', True),
        ("APPLICATION/OpenMetrics-Text;VERSION=1.0.0", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.5", False),
        ("text/plain;q=0.3,application/openmetrics-text;q=0.5", True),
        ("application/openmetrics-text;q=2", False),
        ("application/openmetrics-text;q=x", False),
        (";;,,;q=;=", False),
        # Prometheus 2 and 3
        (("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
         "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), True),
        (("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
         "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"), True),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5", False),
    ],
)  # fmt: skip
def test_accept_chooses_the_text(accept: str, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics


def test_the_process_is_told_under_the_standard_names() -> None:
    found = parsed(ProcessFigures()(), openmetrics=True)
    assert {name for name, _ in found} == {
        "modeld_resident_anonymous_bytes",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    }
    assert found[key("process_virtual_memory_bytes")] > found[key("process_resident_memory_bytes")] > 1 << 20
    assert found[key("process_resident_memory_bytes")] > found[key("modeld_resident_anonymous_bytes")] > 1 << 20
    assert found[key("process_max_fds")] > found[key("process_open_fds")] >= 3


def test_a_system_without_proc_leaves_out_what_it_does_not_tell(tmp_path) -> None:
    found = parsed(ProcessFigures(tmp_path)(), openmetrics=True)
    assert {name for name, _ in found} == {"process_cpu_seconds_total", "process_max_fds", "process_start_time_seconds"}
