"""Block sizes, warps and stages of the Triton kernels: a few candidates per kernel, widths, dtype and device.

The first candidate is the choice without autotuning: in deterministic mode, in the interpreter, and where it is the
only one. Block sizes along which the lists of live tiles are cut (BLOCK_M of query_kernel, BLOCK_N of key_kernel)
are the same in all candidates of a case. The resources that each takes, for which they were chosen, are in
kernels/benchmarks/results/triton_resources.csv.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Config(NamedTuple):
    block_m: int
    block_n: int
    warps: int
    stages: int

    def blocks(self, names: Sequence[str]) -> dict[str, int]:
        """The block sizes among the arguments `names` of a kernel."""
        return {k: v for k, v in (("BLOCK_M", self.block_m), ("BLOCK_N", self.block_n)) if k in names}


class Case(NamedTuple):
    """What a choice depends on. Widths are padded; shared is what one program may take, in bytes."""

    width: int
    values: int
    dtype: torch.dtype
    kind: str
    capability: tuple[int, int]
    shared: int

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize


def padded(width: int) -> int:
    """The power of two that a width is padded to; tl.dot takes no less than 16."""
    return max(16, 1 << (width - 1).bit_length())


def same(case: Case) -> bool:
    """SAME of key_kernel."""
    return case.kind == "topk" or interpreted()


_FORWARD = [
    Config(128, 64, 8, 3),
    Config(128, 64, 8, 2),
    Config(64, 64, 4, 3),
    Config(64, 64, 4, 2),
    Config(64, 32, 4, 2),
    Config(64, 16, 4, 1),
]
_QUERY = _FORWARD
_KEY = [Config(64, 64, 8, 2), Config(32, 64, 8, 2), Config(16, 64, 8, 2), Config(16, 64, 8, 1)]


def forward(case: Case) -> list[Config]:
    return _fitting(case, _FORWARD, "forward")


def query(case: Case) -> list[Config]:
    return _fitting(case, _QUERY, "query")


def key(case: Case) -> list[Config]:
    return _fitting(case, _KEY, "key")


def topk(case: Case) -> list[Config]:
    return _fitting(case, _FORWARD, "topk")


def _fitting(case: Case, table: list[Config], kernel: str) -> list[Config]:
    if interpreted():
        return [Config(64, 64, 4, 1)]
    if case.dtype == torch.float32:
        return [Config(32, 64, 4, 2)] if kernel == "key" else [Config(64, 32, 4, 2)]
    if case.kind == "topk":
        return [Config(64, 64, 4, 2)]
    return table[:1]
