"""Where samples are cut into windows: end to end, or at random as the paper's authors do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glomo_dist.data.shards.ragged import starts_of

GROWTH, JITTER = 1.4, 10  # of the authors' windows: length T * 1.4^U(-2, 0), begins shifted by up to 10 units
_STEP = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64, from one state to the next


class Cuts(NamedTuple):
    """Windows of samples, in the order of the samples: units `start` .. `start` + `length` - 1 of `sample`.

    sample int32 [n], start int64 [n], length int32 [n], at least 2 (one unit to read, one to predict).
    """

    sample: np.ndarray
    start: np.ndarray
    length: np.ndarray


def fixed_cuts(lengths: np.ndarray, window: int) -> Cuts:
    """Windows of `window` units end to end; a rest of at least two units is a window too. lengths int64 [samples]"""
    counts = lengths // window + (lengths % window >= 2)
    sample = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
    start = (np.arange(len(sample)) - starts_of(counts)[sample]) * window
    return Cuts(sample, start, np.minimum(window, lengths[sample] - start).astype(np.int32))


def random_cuts(lengths: np.ndarray, window: int, seed_lengths: int, seed_starts: int) -> Cuts:
    """The authors' windows: round(window * 1.4^U(-2, 0)) units, each begun window // 2 units after the one before.

    They advance by 100 +- 10 units at a length of 200; here the +-10 is at most window // 4, so that a
    short window still advances. The first window begins with the sample. lengths int64 [samples]
    """
    shift = max(window // 2, 1)
    jitter = min(JITTER, shift // 2)
    # as many as the smallest advance allows
    slots = np.where(lengths >= 2, -(-lengths // (shift - jitter)), 0)
    sample = np.repeat(np.arange(len(lengths), dtype=np.int32), slots)
    uniform = (random_keys(len(sample), seed_lengths) >> np.uint64(11)) * 2.0**-53
    wanted = np.maximum(np.rint(window * GROWTH ** (2 * uniform - 2)), 2).astype(np.int64)
    choices = np.uint64(2 * jitter + 1)
    advance = (random_keys(len(sample), seed_starts) % choices).astype(np.int64) + (shift - jitter)
    begun = starts_of(advance)[:-1]
    start = begun - begun[starts_of(slots)[sample]]
    left = lengths[sample] - start
    there = left >= 2
    return Cuts(sample[there], start[there], np.minimum(wanted, left)[there].astype(np.int32))


def random_keys(n: int, seed: int) -> np.ndarray:
    """uint64 [n] random keys, distinct: the first n numbers of the SplitMix64 generator that starts at `seed`."""
    return splitmix(np.uint64(seed) + np.arange(n, dtype=np.uint64) * _STEP)


def splitmix(state: np.ndarray) -> np.ndarray:
    """The number that the SplitMix64 generator gives in each `state`: uint64 of any shape, a permutation of all 2^64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16. Written out
    because numpy does not promise the same numbers from one version to the next.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = state + _STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
