"""Which units are predicted, and the scale that makes every rank and micro-batch add up to one mean loss."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014) after one step of its counter."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def sample_positions(
    ids: np.ndarray, lengths: np.ndarray, count: int, decoder_steps: int, seed: int
) -> np.ndarray:
    """Units t whose context x_{t+1} .. x_{t+decoder_steps} is predicted: int64 [2, B, count].

    ids [B] int64: global ordinals of the sequences; lengths [B] int64: their numbers of units.
    Uniform in [0, max(length - decoder_steps, 1)), a unit may come twice, counted in each direction's own
    order. A pure function of
    (seed, id, direction, index), so neither the number of ranks nor the rest of the batch changes it.
    """
    ids, lengths = np.asarray(ids), np.asarray(lengths)
    if ids.ndim != 1 or ids.shape != lengths.shape:
        raise ValueError(
            f"sample_positions: ids and lengths must be [B], got {ids.shape} and {lengths.shape}"
        )
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        key = _mix(np.uint64(seed) ^ _mix(ids.astype(np.uint64)))
        key = _mix(key[None] ^ np.arange(1, 3, dtype=np.uint64)[:, None])  # [2, B]
        bits = _mix(key[:, :, None] ^ np.arange(count, dtype=np.uint64))  # [2, B, count]
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    choices = np.maximum(lengths - decoder_steps, 1)[None, :, None]
    positions: np.ndarray = np.floor(uniform * choices).astype(np.int64)
    return positions


def predicted_units(lengths: np.ndarray, positions: np.ndarray, decoder_steps: int) -> int:
    """How many units the model will predict: known before the forward pass. positions [2, B, S]"""
    left = np.asarray(lengths)[None, :, None] - 1 - positions
    return int(np.clip(left, 0, decoder_steps).sum())


def loss_scale(ranks: int, passes: int, targets: int) -> float:
    """Factor on a summed loss so that the gradient is that of the mean over all `targets` of the step.

    DeepSpeed averages gradients over ranks and divides by the number of accumulated backward passes; both are
    undone here, since unequal sequences make the mean of means another objective.
    """
    return ranks * passes / max(targets, 1)
