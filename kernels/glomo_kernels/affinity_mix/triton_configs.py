"""Block sizes, warps and stages of the Triton kernels: a few candidates per kernel, widths, dtype and device.

The first candidate is the choice without autotuning: in deterministic mode, in the interpreter, and where it is the
only one. They were chosen by what they take of a GPU (registers, none of them spilled where that can be; shared
memory), which kernels/benchmarks/ahead_of_time.py finds out without one and keeps in
kernels/benchmarks/results/triton_resources.csv. Their times are still to be measured.

Block sizes along which the lists of live tiles are cut, BLOCK_M of query_kernel and BLOCK_N of key_kernel, are the
same in all candidates of a case.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from glomo_kernels.triton_device import interpreted


class Config(NamedTuple):
    """tma: fetch the tiles that a loop goes over, of k and v, by tensor descriptors (Hopper's bulk copies)."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False

    def __str__(self) -> str:
        numbers = f"{self.block_m} {self.block_n} {self.warps} {self.stages}"
        return f"{numbers} TMA" if self.tma else numbers

    def meta(self, names: Sequence[str]) -> dict[str, int | bool]:
        """What the kernel itself is told, of these the arguments `names`."""
        told = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "TMA": self.tma}
        return {name: value for name, value in told.items() if name in names}


class Case(NamedTuple):
    """What a choice depends on. Widths are padded; shared is what one program may take, in bytes.

    descriptors: the copy engine can fetch tiles of k and v (triton_launch.describable).
    """

    width: int
    values: int
    dtype: torch.dtype
    kind: str
    capability: tuple[int, int]
    shared: int
    descriptors: bool = False

    @property
    def generation(self) -> int:
        """80 (A100 and its kin), 90 (H100, H200) or 100 (B100, B200). Others lack the two newer kinds of product."""
        return {9: 90, 10: 100}.get(self.capability[0], 80)


def padded(width: int) -> int:
    """The power of two that a width is padded to; tl.dot takes no less than 16."""
    return max(16, 1 << (width - 1).bit_length())


def same(case: Case) -> bool:
    """SAME of key_kernel."""
    return case.kind == "topk" or interpreted()


def chunk(dtype: torch.dtype) -> int:
    """CHUNK of the kernels: 0, or for float32 the columns that are multiplied at a time."""
    return 16 if dtype == torch.float32 and not interpreted() else 0


TENSOR_MEMORY = 512  # columns, of sm_100


def _tma(block_m: int, block_n: int, warps: int, stages: int) -> Config:
    return Config(block_m, block_n, warps, stages, tma=True)


# By generation and the wider of the two widths (64 stands for all below, 512 for two of 256), half precision.
#
# A matrix instruction of Hopper has 64 rows and four warps, and Triton lays all 8 warps along the rows where the
# result feeds another product: a tile of 64 rows and 8 warps is then computed twice. TMA saves the registers of
# addresses, up to 80 a thread; in the kernel over keys the rows' numbers, loaded beside, took more than it saved.
_FORWARD = {
    (80, 64): [Config(128, 64, 8, 3), Config(128, 64, 8, 2)],
    (80, 128): [Config(128, 32, 8, 3), Config(64, 64, 4, 3)],
    (80, 256): [Config(128, 64, 8, 2), Config(64, 32, 4, 2)],
    (90, 64): [_tma(128, 64, 8, 3), _tma(128, 128, 8, 3), Config(128, 64, 8, 3)],
    (90, 128): [_tma(128, 64, 8, 3), _tma(128, 128, 8, 2), _tma(64, 64, 4, 2), Config(128, 64, 8, 3)],
    (90, 256): [_tma(128, 64, 8, 3), _tma(128, 64, 8, 2), Config(128, 64, 8, 3)],
    (90, 512): [_tma(128, 32, 8, 3)],
    (100, 64): [_tma(128, 64, 8, 3), Config(128, 64, 8, 3)],
    (100, 128): [_tma(128, 64, 8, 3), Config(128, 64, 8, 3)],
    (100, 256): [_tma(128, 32, 8, 3), Config(128, 32, 8, 3)],
    (100, 512): [_tma(64, 32, 8, 3)],
}
_QUERY = {
    (80, 64): [Config(128, 64, 8, 3), Config(128, 64, 8, 2)],
    (80, 128): [Config(128, 32, 8, 3), Config(128, 32, 8, 2)],
    (80, 256): [Config(64, 64, 8, 2), Config(64, 32, 4, 2)],
    (90, 64): [_tma(128, 64, 8, 3), Config(128, 64, 8, 3)],
    (90, 128): [_tma(128, 64, 8, 3), _tma(128, 64, 8, 2), Config(128, 64, 8, 3)],
    (90, 256): [Config(128, 64, 8, 2), _tma(128, 64, 8, 2)],
    (90, 512): [_tma(128, 32, 8, 2)],
    (100, 64): [_tma(128, 64, 8, 3), Config(128, 64, 8, 3)],
    (100, 128): [_tma(128, 64, 8, 3), Config(128, 64, 8, 3)],
    (100, 256): [_tma(128, 64, 8, 2), Config(128, 64, 8, 2)],
}
_KEY = {
    (80, 64): [Config(64, 64, 4, 3), Config(64, 64, 4, 2)],
    (80, 128): [Config(64, 64, 8, 2), Config(32, 64, 4, 2)],
    (80, 256): [Config(64, 64, 8, 2), Config(32, 64, 8, 3)],
    (90, 64): [Config(64, 128, 8, 3), Config(64, 128, 8, 2)],
    (90, 128): [Config(32, 128, 8, 2), Config(16, 128, 8, 2)],
    (90, 256): [Config(16, 128, 8, 2), Config(32, 128, 8, 2)],
    (100, 64): [Config(64, 128, 8, 3), Config(64, 128, 8, 2)],
    (100, 128): [Config(64, 128, 8, 2), Config(32, 128, 8, 2)],
    (100, 256): [Config(64, 128, 8, 2), Config(32, 128, 8, 2)],
}
# Where nothing of the above fits the shared memory (GPUs for desktops have 99 KB), or both widths are 256.
_SMALL = [Config(64, 32, 4, 2), Config(64, 32, 4, 1), Config(64, 16, 4, 1)]
_SMALL_KEY = [Config(32, 64, 8, 2), Config(16, 64, 8, 2), Config(16, 64, 4, 1)]
# One shape of the tiles of scores in all four kernels (see triton_topk.py).
_TOPK = [_tma(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 1)]
_TOPK_KEY = [Config(64, 64, 8, 2), Config(64, 64, 8, 1)]
# float32 has no matrix instructions that keep its precision; its factors come in chunks and take little memory.
_SINGLE_FORWARD = [Config(64, 32, 8, 2)]
_SINGLE_QUERY = [Config(64, 16, 8, 2)]
_SINGLE_KEY = [Config(16, 64, 8, 2)]


def forward(case: Case) -> list[Config]:
    return _fitting(case, _FORWARD, _SMALL, _SINGLE_FORWARD, extra=0)


def query(case: Case) -> list[Config]:
    return _fitting(case, _QUERY, _SMALL, _SINGLE_QUERY, extra=case.values)


def key(case: Case) -> list[Config]:
    return _fitting(case, _KEY, _SMALL_KEY, _SINGLE_KEY, extra=0, over_keys=True)


def topk(case: Case) -> list[Config]:
    return forward(case)


@functools.cache
def topk_fits(case: Case) -> bool:
    """Whether all kernels of kind topk can have the one shape of tiles that they need."""
    chosen = [config for choose in (forward, query, key) for config in choose(case)]
    return case.dtype == torch.float32 or len({config[:2] for config in chosen}) == 1


def _fitting(
    case: Case,
    table: dict[tuple[int, int], list[Config]],
    small: list[Config],
    single: list[Config],
    extra: int,
    over_keys: bool = False,
) -> list[Config]:
    """The candidates that fit into shared memory, or the first smaller one that does."""
    if interpreted():
        return [Config(64, 64, 4, 1)]
    if case.dtype == torch.float32:
        return single
    if case.kind == "topk":
        *wanted, last = _TOPK_KEY if over_keys else _TOPK
        small = [last, *small]
    else:
        widest = 512 if min(case.width, case.values) > 128 else max(64, case.width, case.values)
        wanted = table.get((case.generation, widest), [])

    def fits(config: Config) -> bool:
        # What stays, what is loaded per stage, and the tile of scores on its way through shared memory.
        stay, step = (config.block_n, config.block_m) if over_keys else (config.block_m, config.block_n)
        both = case.width + case.values
        stays = stay * (both if over_keys else case.width + extra)
        # Before sm_90 the tile in use is in registers already, one less waits.
        waiting = max(1, config.stages - 1) if case.generation == 80 else config.stages
        if case.generation == 100 and case.kind == "topk" and over_keys:
            waiting += 1  # a copy, transposed
        if case.generation == 100 and stay == 128:
            # Columns of tensor memory: sums, and scores on their way.
            sums = both + 3 * step if over_keys else case.width + 3 * step if extra else 2 * case.values + 16
            if sums > TENSOR_MEMORY:
                return False
        # With TMA also the ones of the sums (forward), no scores.
        more = 1024 + 32 * step if config.tma else 4 * stay * step + 4096
        return case.dtype.itemsize * (stays + waiting * step * both) + more <= case.shared

    wanted = [config for config in wanted if case.descriptors or not config.tma]
    chosen = [config for config in wanted if fits(config)]
    return chosen or [next((config for config in small if fits(config)), small[-1])]
