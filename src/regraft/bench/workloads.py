"""Workloads of ``regraft bench``, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PROMPT_TOKENS = 129  # 128 tokens, and the one that decoding starts from
PREFILL_TOKENS = 512
RANK = 16
RECOVERY_RANK = 8
MOST_SEQUENCES = 8

Kind = Literal["decode", "prefill", "load", "adapter"]
Adapters = Literal["none", "lora", "recovery"]


@dataclass(frozen=True)
class Workload:
    """One measurement.

    Attributes:
        title: for people.
        kind: tokens of running answers; tokens of a prompt; seconds to open the base; seconds that a request waits
            longer when its adapter is still on disk.
        sequences: how many run at once.
        adapters: what acts on each of them, another one on each: nothing, a LoRA on every linear map, or a LoRA with a
            GELU recovery bypass beside it.
    """

    title: str
    kind: Kind
    sequences: int = 1
    adapters: Adapters = "none"


WORKLOADS = {
    "decode-1": Workload("decode, batch 1", "decode"),
    "decode-8": Workload("decode, batch 8", "decode", 8),
    "decode-8-lora": Workload(f"decode, batch 8, 8 LoRAs of rank {RANK}", "decode", 8, "lora"),
    "decode-8-recovery": Workload(
        f"decode, batch 8, 8 LoRAs of rank {RANK} with recovery of rank {RECOVERY_RANK}", "decode", 8, "recovery"
    ),
    "prefill-512": Workload(f"prefill of {PREFILL_TOKENS} tokens", "prefill"),
    "load": Workload("load of the packed base", "load"),
    "adapter": Workload("adapter from disk to first token, added time", "adapter"),
}
