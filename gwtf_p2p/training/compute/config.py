"""How one peer computes, in plain data: what the command line says before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """How one peer computes; each peer's own choice.

    `device`: `cpu`, `cuda` or `cuda:N`. `torch_dtype`: `float32` or `bfloat16` (autocast).
    `recompute`: a stage peer keeps only the input of a forward and runs it again at the backward: less memory, a third more
    compute.
    """

    device: str = "cpu"
    torch_dtype: str = "float32"
    recompute: bool = False
