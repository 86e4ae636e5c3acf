from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS: int
TILE: int
BLOCK: int

def kernels() -> list[str]:
    """Names of the kernel sets that this machine runs, the fastest first."""

def built_kernels() -> list[str]:
    """Names of the kernel sets of this build, whether they run here or not."""

def first_not_finite(arrays: Sequence[NDArray[np.float16] | NDArray[np.float32]]) -> int:
    """Number of the first that has a value which is infinite, or none; ``len(arrays)`` if all are finite."""

def bypass_kinds() -> list[str]:
    """Names of the kinds of bypasses that the core runs."""

class Linear:
    """A linear map, or as many of one shape as ``data`` has rows; all arrays then have that axis before theirs."""

    def __init__(
        self,
        codes: str,
        out: int,
        in_: int,
        group: int,
        data: NDArray[np.uint8],
        scale: NDArray[np.float16] | None = None,
        zero: NDArray[np.uint8] | None = None,
        minimum: NDArray[np.float16] | None = None,
        bias: NDArray[np.float32] | None = None,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Model:
    def __init__(
        self,
        hidden: int,
        head_dim: int,
        vocabulary: int,
        epsilon: float,
        embedding_scale: float,
        attention_scale: float,
        activation: str,
        ropes: Sequence[tuple[Sequence[float], float]],
        kv_bits: int = 16,
    ) -> None: ...
    def add_layer(
        self,
        *,
        slots: Sequence[Linear],
        heads: int,
        kv_heads: int,
        mlp: int,
        window: int,
        rope: int,
        attention_norm: NDArray[np.float32],
        mlp_norm: NDArray[np.float32],
        attention_post_norm: NDArray[np.float32] | None = None,
        mlp_post_norm: NDArray[np.float32] | None = None,
        query_norm: NDArray[np.float32] | None = None,
        key_norm: NDArray[np.float32] | None = None,
        expert_size: int = 0,
        active_experts: int = 0,
        router: tuple[Linear, Linear] | None = None,
        threshold: float = 0.0,
        down_bias: NDArray[np.float32] | None = None,
    ) -> None: ...
    def set_ends(self, embedding: Linear, head: Linear, norm: NDArray[np.float32]) -> None: ...
    @property
    def kv_page_bytes(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def step_bytes(self) -> int: ...  # of weights that a step reads in which all experts are taken
    @property
    def expert_bytes(self) -> list[int]: ...  # by layer, those of them that belong to experts

class Adapter:
    def copy_to(self, pages: Sequence[NDArray[np.uint8]]) -> Adapter: ...  # the same in other pages, of the same sizes
    @property
    def pages(self) -> list[NDArray[np.uint8]]: ...  # that it lies in
    @property
    def nbytes(self) -> int: ...

class Packing:
    """Where an adapter's factors go in pages of ``page_bytes``; with 0 in one page, as large as it has to be."""

    def __init__(
        self,
        layers: int,
        bypasses: Sequence[
            tuple[int, int, str, NDArray[Any], NDArray[Any], float]
        ],  # layer, slot, kind, down, up, scale
        bits: int,
        page_bytes: int,
    ) -> None: ...
    @property
    def pages(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    def fill(self, pages: Sequence[NDArray[np.uint8]]) -> Adapter: ...  # leaves what is between the factors as it is

class Core:
    def __init__(self, threads: int, kernels: str = "") -> None: ...
    @property
    def kernels(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def read(self, memory: NDArray[np.uint8]) -> int: ...  # the sum of its 8-byte words
    def matmul(
        self, linear: Linear, x: NDArray[np.float32], float_activations: bool = False
    ) -> NDArray[np.float32]: ...
    def head(
        self, model: Model, states: NDArray[np.float32], float_activations: bool = False
    ) -> NDArray[np.float32]: ...  # logits, [states, vocabulary]
    def step(
        self,
        *,
        model: Model,
        arena: NDArray[np.uint8],
        tokens: NDArray[np.int32],
        first_row: NDArray[np.int32],
        first_position: NDArray[np.int32],
        first_page: NDArray[np.int32],
        pages: NDArray[np.int32],
        wanted: NDArray[np.int32],
        adapters: Sequence[Adapter],
        first_mix: NDArray[np.int32],
        mix_adapter: NDArray[np.int32],
        mix_weight: NDArray[np.float32],
        float_activations: bool = False,
    ) -> NDArray[np.float32]: ...  # last hidden states, [wanted, hidden]
