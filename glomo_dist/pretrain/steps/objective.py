"""Which units are predicted, and the scale that makes every rank and micro-batch add up to one mean loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glomo_dist.data.reading.cutting import splitmix


class Documents(NamedTuple):
    """The documents of the rows of a batch: document i is units `begin[i]` .. `end[i]` - 1 of row `row[i]`.

    int64 [n] each, in the order of the rows and within them; every row has at least one.
    """

    row: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def documents_of(lengths: np.ndarray, segments: np.ndarray | None) -> Documents:
    """lengths int64 [B]; segments int64 [B, T] of packed rows (see `data.Batch`), None: a row is a document."""
    if segments is None:
        return Documents(np.arange(len(lengths)), np.zeros_like(lengths), lengths)
    edge = np.ones_like(segments, bool)
    edge[:, 1:] = segments[:, 1:] != segments[:, :-1]
    row, begin = np.nonzero(edge & (segments >= 0))
    end = np.append(begin[1:], 0)
    last = np.append(row[1:] != row[:-1], True)
    return Documents(row, begin, np.where(last, lengths[row], end))


def sample_positions(
    ids: np.ndarray,
    lengths: np.ndarray,
    count: int,
    decoder_steps: int,
    seed: int,
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """Units t whose context x_{t+1} .. x_{t+decoder_steps} is predicted: int64 [2, B, count].

    ids [B] int64: global ordinals of the sequences; lengths [B] int64: their numbers of units; segments: of
    packed rows, see `documents_of`.
    Uniform over the first max(length - decoder_steps, 1) units of each document of the row, a unit may come twice,
    counted in each direction's own order (a document keeps its place in the row in both).
    A pure function of (seed, id, direction, index): neither the number of ranks nor the rest of the batch changes it.
    """
    ids, lengths = np.asarray(ids), np.asarray(lengths)
    if ids.ndim != 1 or ids.shape != lengths.shape:
        raise ValueError(
            f"sample_positions: ids and lengths must be [B], got {ids.shape} and {lengths.shape}"
        )
    key = splitmix(np.uint64(seed) ^ splitmix(ids.astype(np.uint64)))
    key = splitmix(key[None] ^ np.arange(1, 3, dtype=np.uint64)[:, None])  # [2, B]
    bits = splitmix(key[:, :, None] ^ np.arange(count, dtype=np.uint64))  # [2, B, count]
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    row, begin, end = documents_of(lengths, segments)
    choices = np.maximum(end - begin - decoder_steps, 1)
    behind = np.cumsum(choices)  # choices end to end, document after document, row after row
    before_row = np.concatenate(([0], behind))[np.searchsorted(row, np.arange(len(ids)))]
    of_row = np.bincount(row, choices, len(ids))
    within = np.minimum(np.floor(uniform * of_row[:, None]), of_row[:, None] - 1)
    chosen = before_row[:, None] + within.astype(np.int64)
    document = np.searchsorted(behind, chosen, side="right")
    positions: np.ndarray = begin[document] + chosen - (behind - choices)[document]
    return positions


def predicted_units(
    lengths: np.ndarray, positions: np.ndarray, decoder_steps: int, segments: np.ndarray | None = None
) -> int:
    """How many units the model will predict: known before the forward pass. positions [2, B, S]"""
    row, begin, end = documents_of(np.asarray(lengths), segments)
    width = max(int(end.max()), int(positions.max())) + 1
    at = np.arange(positions.shape[1])[None, :, None] * width + positions
    document = np.searchsorted(row * width + begin, at, side="right") - 1
    return int(np.clip(end[document] - 1 - positions, 0, decoder_steps).sum())


def loss_scale(ranks: int, passes: int, targets: int) -> float:
    """Factor on a summed loss so that the gradient is that of the mean over all `targets` of the step.

    DeepSpeed averages gradients over ranks and divides by the number of accumulated backward passes; both are
    undone here, since unequal sequences make the mean of means another objective.
    """
    return ranks * passes / max(targets, 1)
