"""The native step beside torch: same base, adapters and tokens, same logits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from regraft.engine.run.batch import Chunk
from regraft.engine.weights.adapter_packing import Bits
from regraft.engine.weights.native_model import KvBits
from regraft.native import _core
from tests.engine.networks import Twin, make_bypasses, make_twin, native_adapter, random_ids
from tests.tiny import FAMILIES

TOLERANCE = 5e-3  # logits of about 3: keys and values are kept in float16


def whole(ids: list[int], pages: list[int], **options: Any) -> Chunk:
    """A prompt in one chunk, all its logits wanted."""
    return Chunk(ids, 0, pages, logits=len(ids), **options)


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(layers=3)


@pytest.mark.parametrize("kernels", _core.kernels())
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_torch(family: str, tie: bool, kernels: str) -> None:
    twin = make_twin(family, layers=7 if family == "gemma3" else 2, tie=tie, kernels=kernels)
    ids = random_ids(70)
    assert np.abs(twin.step(whole(ids, [3, 9, 1, 7, 5])) - twin.oracle(ids)).max() < TOLERANCE


@pytest.mark.parametrize("kernels", _core.kernels())
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_keys_and_values_in_eight_bits(family: str, kernels: str) -> None:
    twin = make_twin(family, layers=7 if family == "gemma3" else 2, kernels=kernels, kv_bits=8)
    exact = make_twin(family, layers=7 if family == "gemma3" else 2, kernels=kernels)
    assert 0.5 < twin.native.kv_page_bytes / exact.native.kv_page_bytes < 0.6
    ids = random_ids(200)
    chunk, truth = whole(ids, list(range(13))), twin.oracle(ids)
    error = np.linalg.norm(twin.step(chunk) - truth) / np.linalg.norm(truth)
    assert np.linalg.norm(exact.step(chunk) - truth) / np.linalg.norm(truth) < error < 0.02


@pytest.mark.parametrize("window", [1, 5, 16, 33])
@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_window_hides_what_is_before_it(family: str, window: int) -> None:
    twin = make_twin(family, layers=7, window=window)
    ids = random_ids(70)
    assert np.abs(twin.step(whole(ids, [3, 9, 1, 7, 5])) - twin.oracle(ids)).max() < TOLERANCE


@pytest.mark.parametrize("hidden", [40, 64, 72])
def test_widths_need_not_be_whole_blocks(hidden: int) -> None:
    twin = make_twin(hidden=hidden * 4, intermediate=hidden + 8, layers=2)
    ids = random_ids(20)
    assert np.abs(twin.step(whole(ids, [0, 1])) - twin.oracle(ids)).max() < TOLERANCE


@pytest.mark.parametrize("kv_bits", [8, 16])
@pytest.mark.parametrize("float_activations", [True, False])
def test_chunks_are_the_whole_prompt(float_activations: bool, kv_bits: KvBits) -> None:
    twin = make_twin(layers=3, kv_bits=kv_bits)
    ids, pages = random_ids(300), list(range(40, 59))
    at_once = twin.step(whole(ids, list(range(19))), float_activations=float_activations)
    cuts = [0, 1, 13, 14, 50, 127, 128, 129, 160, 299, 300]
    in_parts = [
        twin.step(Chunk(ids[a:b], a, pages, logits=b - a), float_activations=float_activations)
        for a, b in itertools.pairwise(cuts)
    ]
    assert np.array_equal(np.concatenate(in_parts), at_once)


def test_a_batch_is_its_sequences_one_by_one(twin: Twin) -> None:
    adapters = [native_adapter(twin, make_bypasses(twin.model, seed=seed, rank=3 + 5 * seed)) for seed in range(3)]
    mixes: list[Any] = [(), ((adapters[0], 1.0),), ((adapters[1], 1.0),), ((adapters[0], 0.3), (adapters[2], -0.8)), ()]
    mixes += [((adapters[2], 0.7), (adapters[0], 1.1)), ((adapters[2], 1.0),)]
    lengths = [1, 17, 5, 20, 3, 2, 1]
    chunks = [
        whole(random_ids(n, seed=i), [2 * i, 2 * i + 1], mix=mix)
        for i, (n, mix) in enumerate(zip(lengths, mixes, strict=True))
    ]
    together = twin.step(*chunks)
    alone = np.concatenate([twin.step(chunk) for chunk in chunks])
    assert np.array_equal(together, alone)  # whatever stands beside a row, it does not change by a bit


@pytest.mark.parametrize("bits", [8, 16])
def test_rows_of_one_adapter_are_taken_together_and_do_not_change(twin: Twin, bits: Bits) -> None:
    adapters = [native_adapter(twin, make_bypasses(twin.model, seed=s, rank=7 * s + 9), bits=bits) for s in range(2)]
    of = [0, 0, 0, 0, 0, 0, 1, 0, 1, 1]
    chunks = [
        whole(random_ids(1 + i % 3, seed=i), [i], mix=((adapters[number], 0.5 + number),))
        for i, number in enumerate(of)
    ]
    together = twin.step(*chunks, float_activations=False)
    assert np.array_equal(together, np.concatenate([twin.step(c, float_activations=False) for c in chunks]))


def test_eight_bits_throughout_stay_near_torch(twin: Twin) -> None:
    ids, bypasses = random_ids(40), make_bypasses(twin.model, seed=5, rank=20)
    adapter = native_adapter(twin, bypasses, bits=8)
    found = twin.step(whole(ids, [0, 1, 2], mix=((adapter, 1.0),)), float_activations=False)
    truth = twin.oracle(ids, bypasses)
    assert np.linalg.norm(found - truth) < 0.15 * np.linalg.norm(truth - twin.oracle(ids))


@pytest.mark.parametrize(("bits", "tolerance"), [(16, TOLERANCE), (8, 0.25)])
def test_adapters_are_those_of_torch(twin: Twin, bits: int, tolerance: float) -> None:
    ids, bypasses = random_ids(40), make_bypasses(twin.model, seed=5)
    found = twin.step(whole(ids, [0, 1, 2], mix=((native_adapter(twin, bypasses, bits=bits), 1.0),)))
    assert np.abs(found - twin.oracle(ids, bypasses)).max() < tolerance
    assert np.abs(found - twin.oracle(ids)).max() > 1  # and they do act


def test_a_mix_is_the_weighted_sum_of_deltas(twin: Twin) -> None:
    ids, weights = random_ids(40), (0.6, -0.5)
    parts = [make_bypasses(twin.model, seed=seed, rank=2 + seed) for seed in (1, 2)]
    mix = tuple((native_adapter(twin, part), weight) for part, weight in zip(parts, weights, strict=True))
    for part, weight in zip(parts, weights, strict=True):
        for bypasses in part.values():
            for bypass in bypasses:
                bypass.scale *= weight
    joined = {slot: parts[0][slot] + parts[1][slot] for slot in parts[0]}
    assert np.abs(twin.step(whole(ids, [0, 1, 2], mix=mix)) - twin.oracle(ids, joined)).max() < TOLERANCE


def test_only_the_wanted_logits_are_given(twin: Twin) -> None:
    first, second = whole(random_ids(9), [0]), whole(random_ids(12, seed=1), [1])
    everything = twin.step(first, second)
    wanted = twin.step(Chunk(first.tokens, 0, [0], logits=2), Chunk(second.tokens, 0, [1], logits=0))
    assert np.array_equal(wanted, everything[7:9])


def test_threads_change_nothing(twin: Twin) -> None:
    chunk = whole(random_ids(33), [0, 1, 2])
    alone = make_twin(layers=3, threads=1)
    assert np.array_equal(alone.step(chunk, float_activations=False), twin.step(chunk, float_activations=False))


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (Chunk([400], 0, [0]), "vocabulary"),
        (Chunk([-1], 0, [0]), "vocabulary"),
        (Chunk([5], 16, [0]), "too few pages"),
        (Chunk([5], -1, [0]), "begins before"),
        (Chunk([5], 0, [64]), "outside the arena"),
        (Chunk([5], 0, [-1]), "outside the arena"),
        (Chunk([], 0, [0], logits=0), "nothing to do"),
        (Chunk([5], 0, [0], logits=2), "not in the batch"),
    ],
)
def test_what_does_not_fit_is_refused(twin: Twin, chunk: Chunk, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        twin.step(chunk)


def test_an_adapter_is_once_in_a_mix(twin: Twin) -> None:
    adapter = native_adapter(twin, make_bypasses(twin.model, seed=0))
    with pytest.raises(ValueError, match="twice"):
        twin.step(Chunk([5], 0, [0], mix=((adapter, 0.5), (adapter, 0.5))))


def test_an_adapter_of_another_model_is_refused(twin: Twin) -> None:
    other = make_twin(hidden=128, layers=3)
    adapter = native_adapter(other, make_bypasses(other.model, seed=0))
    with pytest.raises(ValueError, match="wrong shape"):
        twin.step(Chunk([5], 0, [0], mix=((adapter, 1.0),)))
