"""Prometheus metrics, under vLLM's names with our prefix; some also under vLLM's own, as routers read them there.

The Gateway API inference extension routes by ``vllm:lora_requests_info``, whose labels list the adapters that run and
wait and whose value is the time. Adapters that are private to some keys are one, ``private``, in all labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from regraft.engine.engine import Engine
from regraft.engine.stats import EngineStats

_PRIVATE, _OTHERS, _MIX = "private", "others", "mix"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 400)


class Labels:
    """Names for metrics, of bounded number: the first so many adapters have their own.

    Args:
        base_name: what the base is called.
        private: adapters that are not to be named.
        max_labels: how many are.
    """

    def __init__(self, base_name: str, private: Collection[str], max_labels: int) -> None:
        self._base_name, self._private, self._max_labels = base_name, private, max_labels
        self._known: set[str] = set()

    def of_mix(self, mix: Collection[str]) -> str:
        """The label of a request."""
        if len(mix) == 1:
            return self.of(next(iter(mix)))
        return _MIX if mix else self._base_name

    def of(self, adapter: str) -> str:
        """The label of an adapter."""
        if adapter in self._private:
            return _PRIVATE
        if adapter not in self._known and len(self._known) < self._max_labels:
            self._known.add(adapter)
        return adapter if adapter in self._known else _OTHERS

    def joined(self, adapters: Iterable[str]) -> str:
        """Several adapters in one label's value."""
        return ",".join(sorted({self.of(adapter) for adapter in adapters}))


class Metrics:
    """Counts requests, and asks the engine for the rest whenever it is read.

    Args:
        engine: the one that is measured.
        labels: names for adapters.
        num_adapters: how many are known and how many were rejected, at present.
    """

    def __init__(self, engine: Engine, labels: Labels, num_adapters: Callable[[], tuple[int, int]]) -> None:
        self.labels = labels
        self.num_generated = 0  # tokens of answers, as they come
        self._registry = CollectorRegistry()
        self.requests = self._counter("request_success", "Answered requests.", "model_name", "finished_reason")
        self.failures = self._counter("request_failure", "Requests that ended with an error.", "endpoint", "code")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", "model_name")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers.", "model_name")
        self.first_token = self._histogram("time_to_first_token_seconds", "From the request to its first text.")
        self.latency = self._histogram("e2e_request_latency_seconds", "From the request to the end of its answers.")
        self._registry.register(_EngineGauges(engine, labels, num_adapters))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it; waits for the engine's present step, so not for an event loop."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"regraft_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"regraft_{name}", text, registry=self._registry, buckets=_SECONDS)


class _EngineGauges(Collector):
    def __init__(self, engine: Engine, labels: Labels, num_adapters: Callable[[], tuple[int, int]]) -> None:
        self._engine, self._labels, self._num_adapters = engine, labels, num_adapters

    def describe(self) -> Iterable[Metric]:
        return ()  # or registering would collect, to learn the names

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        for prefix in ("regraft_", "vllm:"):
            yield _gauge(f"{prefix}num_requests_running", "Requests that have started.", stats.num_running)
            yield _gauge(f"{prefix}num_requests_waiting", "Requests that have not started.", stats.num_waiting)
            yield _gauge(
                f"{prefix}kv_cache_usage_perc", "Share of the memory that these keep, 0 to 1.", stats.memory_use
            )
        known, rejected = self._num_adapters()
        yield _gauge("regraft_adapters", "Adapters that requests may name.", known)
        yield _gauge("regraft_adapters_rejected", "Directories that cannot be read as adapters.", rejected)
        yield _gauge("regraft_memory_bytes", "For keys, values and adapters.", stats.num_pages * stats.page_bytes)
        yield _gauge("regraft_memory_free_bytes", "Of them without a tenant.", stats.num_free_pages * stats.page_bytes)
        yield self._lora_info(stats)

    def _lora_info(self, stats: EngineStats) -> Metric:
        text = "Adapters that run and wait; the value is the time."
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        info = GaugeMetricFamily("vllm:lora_requests_info", text, labels=labels)
        most = str(self._num_adapters()[0])  # what fits in the memory may run, so all of them
        running = self._labels.joined(stats.running_adapters)
        info.add_metric([most, running, self._labels.joined(stats.waiting_adapters)], time.time())
        return info


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
