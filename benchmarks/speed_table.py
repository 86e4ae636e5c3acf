"""How fast bases decode that are pruned, or cut in experts, beside the dense model in about the same bits."""

from __future__ import annotations

from benchmarks.lines import Line, compression, markdown

MODELS = {"speed": "SmolLM2-135M", "speed of 1.1B": "Llama 1.1B"}


def speeds() -> str:
    """Ratio to the dense model by model and recipe, and in brackets the ratio of the bytes that a token reads."""
    rows = []
    for phase, model in MODELS.items():
        for name, line in compression(phase).items():
            cells = [_cell(line, name, workload) for workload in ("decode-1", "decode-8")]
            rows.append([f"{model}: `{name}` beside `{line['beside']}`", *cells])
    return markdown(["", "decode, batch 1", "decode, batch 8"], rows)


def _cell(line: Line, name: str, workload: str) -> str:
    found = line[workload]
    read = found["bytes_per_token"]
    limit = read[line["beside"]] / read[name]
    return f"{found['tokens_per_s'][name]:.0f} tokens/s, {found['ratio']:.2f}× ({limit:.2f}×)"
