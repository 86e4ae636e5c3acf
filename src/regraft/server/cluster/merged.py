"""Replies of all replicas merged: metrics with a label for the replica, and sums for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry


def merge_metrics(texts: Sequence[bytes]) -> bytes:
    """Prometheus texts of replicas, each sample with its replica's number."""
    families: dict[str, Metric] = {}
    for number, text in enumerate(texts):
        for family in text_string_to_metric_families(text.decode()):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.samples.append(sample._replace(labels={**sample.labels, "replica": str(number)}))
    registry = CollectorRegistry()
    registry.register(_Fixed(list(families.values())))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def merge_states(texts: Sequence[bytes]) -> bytes:
    """The page's states: numbers are added, names put together, and the time is the first's."""
    states: list[dict[str, Any]] = [json.loads(text) for text in texts]
    return json.dumps(_merge(states) | {"time_s": states[0]["time_s"], "replicas": len(states)}).encode()


def _merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, first in states[0].items():
        values = [state[key] for state in states]
        if isinstance(first, Mapping):
            merged[key] = _merge(values)
        elif isinstance(first, list):
            merged[key] = sorted({name for names in values for name in names})
        else:
            merged[key] = sum(values)
    return merged
