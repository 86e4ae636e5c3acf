"""The smaller model is the larger one with the removed parts at zero, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.compress.prune.step import prune
from regraft.errors import ConfigError, FormatError
from tests.compress.prune.made import logits, mask, sequences, settings, tiny
from tests.tiny import FAMILIES

PRUNED: list[dict[str, Any]] = [
    {"groups": ["heads"], "ratio": 0.15},
    {"groups": ["neurons"], "protect_first": 1},
    {"groups": ["heads", "neurons"], "ranking": "global", "protect_last": 1},
    {"groups": ["channels"], "ratio": 0.4},
]


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", PRUNED, ids=lambda options: "+".join(options["groups"]))
def test_groups_are_complete(family: str, tie: bool, options: dict[str, Any], tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", family, tie=tie)
    whole = logits(base.model)
    small, pruned = prune(base, settings(**options))
    assert torch.equal(logits(base.model), whole)  # the base is left as it was
    assert small.kept is not None
    mask(base, small.kept)
    # With an untied head the channels that are gone are zero in what it reads, so its columns need no mask.
    torch.testing.assert_close(logits(small.model), logits(base.model), rtol=1e-3, atol=2e-5)
    assert (logits(base.model) - whole).abs().max() > 0.1
    assert pruned.removed == pytest.approx(options.get("ratio", 0.3), abs=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_goes_is_passed_by(family: str, tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", family, layers=7)
    small, pruned = prune(base, settings(groups=["layers"], protect_first=1, protect_last=2))
    kept = [layer.source for layer in pruned.layers]
    assert len(kept) == 5
    assert {0, 5, 6} <= set(kept)
    base.model.model.layers = torch.nn.ModuleList(base.model.model.layers[number] for number in kept)
    base.model.config.num_hidden_layers = len(kept)
    if types := getattr(base.model.config, "layer_types", None):
        base.model.config.layer_types = [types[number] for number in kept]
        assert small.model.config.layer_types == base.model.config.layer_types
    torch.testing.assert_close(logits(small.model), logits(base.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_generating_with_a_cache_is_running_the_whole(family: str, tmp_path: Path) -> None:
    small, _ = prune(tiny(tmp_path / "base", family), settings(ranking="global"))
    ids = sequences(1, 6)
    answer = small.model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=[])
    for length in range(6, 14):
        assert int(logits(small.model, answer[:, :length])[0, -1].argmax()) == int(answer[0, length])


@pytest.mark.parametrize("later", [{"groups": ["channels"], "ratio": 0.3}, {"groups": ["layers"]}, {}])
def test_steps_add_up(later: dict[str, Any], tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", "qwen2")
    first, between = prune(base, settings(importance="flap", ratio=0.2), sequences())
    second, pruned = prune(first, settings(**later), before=between)
    assert second.kept is not None
    assert first.kept is not None
    biased = {layer.source: layer.biases for layer in between.layers}
    assert [layer.biases for layer in pruned.layers] == [biased[layer.source] for layer in pruned.layers]
    assert pruned.removed > between.removed
    for here in second.kept.layers:
        before = next(layer for layer in first.kept.layers if layer.source == here.source)
        assert set(here.neurons) <= set(before.neurons)
    if later.get("groups") != ["layers"]:
        mask(first, first.kept.everything(first.kept.original).then(_within(first.kept, second.kept)))
        torch.testing.assert_close(logits(second.model), logits(first.model), rtol=1e-3, atol=2e-5)


def _within(first: Any, second: Any) -> Any:
    """``second`` in the numbers of ``first``."""
    import numpy as np

    layers = tuple(
        type(layer)(
            number,
            np.searchsorted(first.layers[number].heads, layer.heads),
            np.searchsorted(first.layers[number].neurons, layer.neurons),
        )
        for number, layer in enumerate(second.layers)
    )
    return type(second)(second.original, layers, np.searchsorted(first.channels, second.channels))


def test_flap_puts_the_mean_of_what_goes_into_biases(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    text = sequences()
    small, pruned = prune(base, settings(importance="flap", ranking="global", protect_first=1), text)
    assert small.kept is not None
    assert pruned.layers[0].biases == []
    for number, layer in enumerate(small.kept.layers):
        mlp = base.model.model.layers[number].mlp
        seen: list[torch.Tensor] = []
        handle = mlp.down_proj.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        logits(base.model, text)
        handle.remove()
        mean = seen[0].flatten(0, 1).mean(0)
        mean[torch.from_numpy(layer.neurons)] = 0
        bias = small.model.model.layers[number].mlp.down_proj.bias
        if "mlp.down_proj" in pruned.layers[number].biases:
            torch.testing.assert_close(bias, mlp.down_proj.weight @ mean, rtol=1e-4, atol=1e-5)
        else:
            assert bias is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.97}, r"prune.ratio 0.97: expected at most 0\.\d+"),
        ({"ratio": 0.5, "protect_first": 2, "protect_last": 1}, r"prune.ratio 0.5: expected at most 0\.\d+"),
        ({"protect_first": 4}, "prune.ratio 0.3: expected at most 0"),
        ({"groups": ["heads"], "ratio": 0.3}, r"prune.ratio 0.3: expected at most 0\.\d+"),
        ({"groups": ["layers"], "ratio": 0.05}, "prune.ratio 0.05 of 4 layers: expected 1 to 3 layers"),
        ({"groups": ["layers"], "ratio": 0.9}, "of 4 layers: expected 1 to 3 layers to remove, found 4"),
        ({"groups": ["channels"], "ratio": 0.01}, "prune.ratio 0.01 of 64 channels"),
    ],
)
def test_what_cannot_go_is_said(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        prune(tiny(tmp_path / "base"), settings(**options))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("extra", torch.nn.Linear(4, 4), r"layers\.1\.mlp\.extra of \(4, 4\) cannot be pruned: expected no such slot"),
        (
            "up_proj",
            torch.nn.Linear(64, 80),
            r"layers\.1\.mlp\.up_proj of \(80, 64\) cannot be pruned: expected \(96, 64\)",
        ),
        ("up_proj", torch.nn.Identity(), r"layers\.1\.mlp\.up_proj of no shape cannot be pruned: expected \(96, 64\)"),
    ],
)
def test_models_that_pruning_does_not_know_are_refused(
    name: str, change: torch.nn.Module, says: str, tmp_path: Path
) -> None:
    base = tiny(tmp_path / "base")
    setattr(base.model.model.layers[1].mlp, name, change)
    with pytest.raises(FormatError, match=says):
        prune(base, settings())
