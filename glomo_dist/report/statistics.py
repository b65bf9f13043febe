"""Mean, spread and paired differences over seeds; plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values, their sample standard deviation and the 95 % interval of the mean (Student's t).

    What one value cannot tell is None: `sd`, `low` and `high` for n < 2, `mean` for n = 0.
    """

    n: int
    mean: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Paired:
    """Mean of a − b over the seeds both have, with the 95 % interval and the p-value of the paired t-test.

    missing: seeds that only one of the two has. `p` is None for n < 2 and where all differences are equal,
    since the test divides by their spread.
    """

    difference: Estimate
    p: float | None
    missing: tuple[int, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, spread and interval of these values."""
    n = len(values)
    if n == 0:
        return Estimate(0, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(special.stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """a, b: value by seed. Only seeds in both are compared, each with itself."""
    common = sorted(a.keys() & b.keys())
    difference = estimate([a[seed] - b[seed] for seed in common])
    p = None
    # A spread of rounding errors only is no spread: 0.7 - 0.6 and 0.8 - 0.7 differ in the last bit.
    if difference.sd is not None and difference.mean is not None and difference.sd > 1e-12:
        t = difference.mean / (difference.sd / math.sqrt(difference.n))
        p = float(2 * special.stdtr(difference.n - 1, -abs(t)))
    return Paired(difference, p, tuple(sorted(a.keys() ^ b.keys())))
