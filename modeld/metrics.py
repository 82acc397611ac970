"""What is counted, and how does a scrape read it? Families of samples, and Prometheus' two texts of them.

An instrument is a handful of numbers behind one small lock. What others keep, or what is only known at the moment, comes from
collectors, functions that are asked at each scrape. The two texts: Prometheus' own, version 0.0.4, and OpenMetrics 1.0.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modeld.types import Distribution

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# Upper ends of buckets, in seconds.
REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
WAIT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)

_UNITS = ("seconds", "bytes")  # units that a family's name ends with; tokens, cells and the like are counts of what they name


@dataclass(frozen=True, slots=True)
class Sample:
    """`labels`: values in the order of the family's label names."""

    labels: tuple[str, ...]
    value: float | Distribution


@dataclass(frozen=True, slots=True)
class Family:
    """All samples of one name at one moment. A counter's name comes without `_total`, which the texts add."""

    name: str
    kind: str  # counter | gauge | histogram
    help: str
    labels: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()


def counter(name: str, help_: str, value: float) -> Family:
    return Family(name, "counter", help_, (), (Sample((), value),))


def gauge(name: str, help_: str, value: float) -> Family:
    return Family(name, "gauge", help_, (), (Sample((), value),))


def by_label(kind: str, name: str, help_: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Family:
    """A family with a sample for each row of `values`."""
    return Family(name, kind, help_, labels, tuple(Sample(key, value) for key, value in values.items()))


class Buckets:
    """A histogram in the making: written by one thread, or under its owner's lock; read by any, which may see it a little old."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper ends that rise; above the last one is one bucket more."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, n: int = 1) -> None:
        """So many observations of one value."""
        self._counts[bisect_left(self._bounds, value)] += n
        self._sum += n * value

    def read(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._sum)


class Counter:
    """Rises. Any thread."""

    def __init__(self, name: str, help_: str, labels: tuple[str, ...]) -> None:
        self._family = Family(name, "counter", help_, labels)
        self._lock = threading.Lock()
        # Guards _values.
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, n: float, *labels: str) -> None:
        """`labels` come from a bounded set, never from a client."""
        assert len(labels) == len(self._family.labels)
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + n

    def read(self) -> Family:
        with self._lock:
            values = dict(self._values)
        family = self._family
        return by_label("counter", family.name, family.help, family.labels, values)


class Histogram:
    """Counts observations by size. Any thread."""

    def __init__(self, name: str, help_: str, bounds: Sequence[float], labels: tuple[str, ...]) -> None:
        self._family = Family(name, "histogram", help_, labels)
        self._bounds = bounds
        self._lock = threading.Lock()
        # Guards _buckets.
        self._buckets: dict[tuple[str, ...], Buckets] = {} if labels else {(): Buckets(bounds)}

    def observe(self, value: float, *labels: str) -> None:
        """`labels` as of Counter.add."""
        assert len(labels) == len(self._family.labels)
        with self._lock:
            buckets = self._buckets.get(labels)
            if buckets is None:
                buckets = self._buckets[labels] = Buckets(self._bounds)
            buckets.observe(value)

    def read(self) -> Family:
        with self._lock:
            samples = tuple(Sample(labels, buckets.read()) for labels, buckets in self._buckets.items())
        family = self._family
        return Family(family.name, family.kind, family.help, family.labels, samples)


Collector = Callable[[], Iterable[Family]]


class Registry:
    """All that one process tells. Filled before the first scrape; scraped from any thread."""

    def __init__(self) -> None:
        self._collectors: list[Collector] = []

    def collect(self, collector: Collector) -> None:
        """Ask it at each scrape. It must not wait, and tells the same families each time."""
        self._collectors.append(collector)

    def counter(self, name: str, help_: str, *labels: str) -> Counter:
        made = Counter(name, help_, labels)
        self.collect(lambda: (made.read(),))
        return made

    def histogram(self, name: str, help_: str, bounds: Sequence[float], *labels: str) -> Histogram:
        made = Histogram(name, help_, bounds, labels)
        self.collect(lambda: (made.read(),))
        return made

    def read(self) -> list[Family]:
        families = [family for collector in self._collectors for family in collector()]
        assert len({family.name for family in families}) == len(families), "two families of one name"
        return families


def render(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """The text of a scrape."""
    lines: list[str] = []
    for family in families:
        series = f"{family.name}_total" if family.kind == "counter" else family.name
        told = family.name if openmetrics else series
        lines.append(f"# HELP {told} {_escaped(family.help, quotes=openmetrics)}")
        lines.append(f"# TYPE {told} {family.kind}")
        unit = family.name.rpartition("_")[2]
        if openmetrics and unit in _UNITS:
            lines.append(f"# UNIT {told} {unit}")
        for sample in family.samples:
            labels = [
                f'{name}="{_escaped(value, quotes=True)}"' for name, value in zip(family.labels, sample.labels, strict=True)
            ]
            if isinstance(sample.value, Distribution):
                lines += _histogram_lines(series, labels, sample.value)
            else:
                lines.append(f"{series}{_braced(labels)} {_number(sample.value)}")
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def _histogram_lines(name: str, labels: list[str], value: Distribution) -> Iterator[str]:
    n_up_to = 0
    for bound, n in zip((*value.bounds, math.inf), value.counts, strict=True):
        n_up_to += n
        # OpenMetrics wants the canonical number; the same in both texts, so that a series keeps its labels.
        bucket = f'le="{"+Inf" if bound == math.inf else float(bound)}"'
        yield f"{name}_bucket{_braced([*labels, bucket])} {n_up_to}"
    yield f"{name}_sum{_braced(labels)} {_number(value.sum)}"
    yield f"{name}_count{_braced(labels)} {n_up_to}"


def _braced(labels: list[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1 << 53 else repr(float(value))


def wants_openmetrics(accept: str) -> bool:
    """Whether a field Accept prefers OpenMetrics 1.0 to Prometheus' own text, which is what everybody else gets. Pure."""
    openmetrics = text = 0.0
    for entry in accept.lower().split(","):
        kind, *parameters = [part.strip() for part in entry.split(";")]
        given = dict(part.partition("=")[::2] for part in parameters)
        quality = _quality(given.get("q", "1"))
        if kind == "application/openmetrics-text" and given.get("version", "1.0.0").strip('"') == "1.0.0":
            openmetrics = max(openmetrics, quality)
        elif kind in ("text/plain", "text/*", "*/*") and given.get("version", "0.0.4").strip('"') == "0.0.4":
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
