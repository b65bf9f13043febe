"""Short documents side by side in rows of one length: best fit, longest first, on the histogram of lengths.

All documents of one length are the same to the packer, so it works on counts and its time does not grow with the
number of documents. (Krell et al., "Efficient sequence packing without cross-contamination", 2021, section 3.1.)
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from glomo_dist.data.shards.ragged import ranges, starts_of

Content = tuple[tuple[int, int], ...]  # (length, how many of it), longest first


def pack(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Put every document into one row of at most `capacity` units.

    lengths: int [n], each in 1..capacity.  -> (document int64 [n], first int64 [rows + 1]): row r holds the documents
    document[first[r]] .. document[first[r + 1] - 1]. Documents of one length are used in the order they come.
    """
    of_length = np.argsort(lengths, kind="stable")
    # not np.bincount, which would take memory for every length up to the capacity or the longest document
    different, counts = np.unique(lengths, return_counts=True)
    number_of = dict(zip(different.tolist(), counts.tolist(), strict=True))
    # of each length, the next document in `of_length`
    used = dict(zip(different.tolist(), starts_of(counts).tolist(), strict=False))
    documents: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for content, rows in _best_fit(number_of, capacity):
        columns = []
        for length, times in content:
            columns.append(of_length[used[length] : used[length] + rows * times].reshape(rows, times))
            used[length] += rows * times
        documents.append(np.concatenate(columns, axis=1).ravel())
        sizes.append(np.full(rows, len(documents[-1]) // rows))
    if not documents:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    return np.concatenate(documents), starts_of(np.concatenate(sizes))


def reorder(documents: np.ndarray, first: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `pack` in another order: row r becomes the old row order[r]."""
    sizes = np.diff(first)[order]
    return documents[ranges(first[:-1][order], sizes)], starts_of(sizes)


def _best_fit(number_of: dict[int, int], capacity: int) -> list[tuple[Content, int]]:
    """Contents of rows and how many rows have each. number_of: length -> documents that have it."""
    rows: dict[int, list[tuple[Content, int]]] = {capacity: []}  # by the room that is left
    rooms = [capacity]  # its keys, ascending

    def put(content: Content, room: int, number: int) -> None:
        if room not in rows:
            rows[room] = []
            insort(rooms, room)
        rows[room].append((content, number))

    for length, left in sorted(number_of.items(), reverse=True):
        while left:
            # the least room that is enough; a new row has `capacity`
            room = rooms[bisect_left(rooms, length)]
            times = min(room // length, left)  # as many as fit into one such row
            whole = left // times
            if rows[room]:
                content, number = rows[room].pop()
            else:
                content, number = (), whole
            taken = min(number, whole)
            if number > taken:
                rows[room].append((content, number - taken))
            put((*content, (length, times)), room - times * length, taken)
            left -= taken * times
            if not rows[room] and room != capacity:
                del rows[room]
                rooms.remove(room)
    return [entry for group in rows.values() for entry in group]
