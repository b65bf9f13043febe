"""Reading CSV: cells in quotes may hold separators, quotes and line breaks; errors name file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.sources import SUFFIXES, lines, require_keys

ENDINGS = (".csv", *SUFFIXES)


def csv_rows(
    source: str, keys: tuple[str, ...] = (), *, header: Sequence[str] = (), delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """("file, line n", row) of a CSV file, local or by URL, also packed; n is the line where the row begins.

    The first line that is not blank names the columns; a file without such a line is given them as `header`.
    keys: columns that it must have.  A line break in a cell is read as "\\n".
    Raises DataError for a row of another length, and for quotes that are not closed or not doubled in a cell.
    """
    names = list(header)
    for where, cells in _rows(source, delimiter):
        if not names:
            names = cells
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(
                    f"{where}: two columns are called {twice[0]!r}. Rename or delete one of them."
                )
            require_keys(where, names, keys)
        elif len(cells) != len(names):
            raise DataError(
                f"{where}: {len(cells)} cells, expected {len(names)} ({', '.join(names)}). A cell with "
                f"{delimiter!r} in it must be in quotes."
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def _rows(source: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Cells of all rows that are not blank."""
    reader = csv.reader((f"{line}\n" for _, line in lines(source, ENDINGS)), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield f"{source}, line {begins}", cells
            begins = reader.line_num + 1
    except csv.Error as e:
        raise DataError(
            f"{source}, line {begins}: not CSV ({e}). Are all quotes closed, and doubled inside a cell? Mend the row."
        ) from None
