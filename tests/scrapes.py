"""What a running daemon tells at /metrics, read by a strict reader."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from prometheus_client.openmetrics import parser as openmetrics_parser

from tests.daemon import DEADLINE_S

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def scrape_text(host: str, port: int, accept: str = "") -> str:
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


@dataclass(frozen=True)
class Scrape:
    """`values` by series: name and labels, as `name{a="b"}` with the labels sorted. `kinds` by family."""

    values: dict[str, float]
    kinds: dict[str, str]

    def __getitem__(self, series: str) -> float:
        return self.values[series]

    def total(self, name: str) -> float:
        """Of all series of that name."""
        return sum(value for series, value in self.values.items() if series.partition("{")[0] == name)

    @property
    def names(self) -> set[str]:
        """Of all series."""
        return {series.partition("{")[0] for series in self.values}


def parse(text: str) -> Scrape:
    """OpenMetrics. Fails where the text is not strictly as the standard wants it."""
    values: dict[str, float] = {}
    kinds = {}
    for family in openmetrics_parser.text_string_to_metric_families(text):
        assert family.documentation
        kinds[family.name] = family.type
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            series = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert series not in values
            values[series] = sample.value
    return Scrape(values, kinds)


def scrape(host: str, port: int) -> Scrape:
    return parse(scrape_text(host, port, OPENMETRICS))
