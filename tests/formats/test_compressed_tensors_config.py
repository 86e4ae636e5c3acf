from __future__ import annotations

from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from torch import nn

from regraft.errors import FormatError
from regraft.formats.quantized.compressed_tensors_config import Scheme, scheme_of, to_config
from regraft.models.slots import slot_paths
from tests.tiny import make_model

FOUR, EIGHT, ROW = Scheme(4, 32, True), Scheme(8, 32, True), Scheme(3, 0, True)


def schemes_for(model: nn.Module, case: str) -> dict[str, Scheme]:
    paths = slot_paths(model)
    if case == "one scheme":
        return {path: FOUR for path in paths.values()}
    if case == "by kind of slot":
        return {path: EIGHT if "down_proj" in slot else FOUR for slot, path in paths.items()}
    if case == "by layer":
        return {path: ROW if "layers.1.self_attn.q" in slot else FOUR for slot, path in paths.items()}
    return {path: FOUR for slot, path in paths.items() if "layers.0" in slot}  # the other layer stays dense


@pytest.mark.parametrize("case", ["one scheme", "by kind of slot", "by layer", "half of the layers"])
def test_every_module_gets_its_scheme_from_us_and_from_compressed_tensors(case: str) -> None:
    model = make_model("llama")
    schemes = schemes_for(model, case)
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = to_config(schemes, linears)

    ours = {path: scheme_of(config, path, "Linear") for path in linears}
    apply_quantization_config(model, QuantizationConfig.model_validate(config), show_progress=False)
    theirs = {path: getattr(model.get_submodule(path), "quantization_scheme", None) for path in linears}

    for path in linears:
        assert ours[path] == schemes.get(path)
        if path in schemes:
            weights = theirs[path].weights
            assert (weights.num_bits, weights.group_size or 0, weights.symmetric) == (
                schemes[path].bits,
                schemes[path].group_size,
                schemes[path].symmetric,
            )
        else:
            assert theirs[path] is None


def test_config_of_one_scheme_is_the_plain_one() -> None:
    model = make_model("llama")
    paths = slot_paths(model).values()
    config = to_config({path: FOUR for path in paths}, [*paths, "lm_head"])
    assert list(config["config_groups"]) == ["group_0"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert config["ignore"] == ["lm_head"]


def test_embeddings_are_named() -> None:
    slots = {"model.layers.0.mlp.up_proj": FOUR}
    config = to_config({**slots, "model.embed_tokens": EIGHT}, [*slots, "lm_head"])
    assert scheme_of(config, "model.embed_tokens", "Embedding") == EIGHT
    assert scheme_of(config, "model.layers.0.mlp.up_proj", "Linear") == FOUR
    assert scheme_of(config, "lm_head", "Linear") is None
    assert scheme_of(config, "model.norm", "LlamaRMSNorm") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quant_method": "gptq"},
            "expected compressed-tensors in the format pack-quantized, found gptq in the format",
        ),
        ({"format": "marlin-24"}, "found compressed-tensors in the format marlin-24"),
        ({"config_groups": None}, "quantization_config is not understood: AttributeError"),
        ({"config_groups": {"group_0": {"targets": ["Linear"]}}}, "quantization_config is not understood: KeyError"),
    ],
)
def test_foreign_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    config = to_config({"model.layers.0.mlp.up_proj": FOUR}, ["model.layers.0.mlp.up_proj"]) | change
    with pytest.raises(FormatError, match=message):
        scheme_of(config, "model.layers.0.mlp.up_proj", "Linear")
