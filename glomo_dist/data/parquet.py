"""Rows of Parquet files, with errors that name file, row and column."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from glomo_dist.data.files import InputFile, describe, open_seekable
from glomo_dist.runtime.errors import DataError, suggest

ROWS = 1024  # at a time in memory


def parquet_rows(
    file: InputFile, columns: Sequence[str] | None = None, advice: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 0) and values by column of every row.

    columns: those to read, all if None; `advice` ends the error for one that is not there.

    Whole numbers for which the file has names (the ClassLabel of Hugging Face's datasets) are given as these names; a
    number without one, such as the -1 of a row without a label, stays.
    """
    import pyarrow as pa  # 45 MB, and of use for these files only
    import pyarrow.parquet as pq

    with open_seekable(file) as stream:
        try:
            table = pq.ParquetFile(stream)
            known = table.schema_arrow.names
            for name in columns or ():
                if name not in known:
                    raise DataError(f"{file.name}: no column {name!r}{advice}.{suggest(name, known)}")
            for name in columns or known:
                if known.count(name) > 1:
                    raise DataError(
                        f"{file.name}: {known.count(name)} columns have the name {name!r}. Give each its own."
                    )
            labels = _label_names(table.schema_arrow.metadata)
            row = 0
            for batch in table.iter_batches(batch_size=ROWS, columns=columns and list(columns)):
                for values in zip(
                    *(_values(batch, name, row, file) for name in batch.schema.names), strict=True
                ):
                    found = dict(zip(batch.schema.names, values, strict=True))
                    for name in labels.keys() & found:
                        number = found[name]
                        if type(number) is int and 0 <= number < len(labels[name]):
                            found[name] = labels[name][number]
                    yield row, found
                    row += 1
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{file.name} is not a whole Parquet file: {describe(e)}. Copy it again.") from e


def _values(batch: Any, name: str, row: int, file: InputFile) -> Iterator[Any]:
    for number, value in enumerate(batch.column(name), row):
        try:
            yield value.as_py()
        except UnicodeDecodeError as e:  # Parquet does not check what is called a string
            raise DataError(
                f"{file.name}, row {number}, column {name!r}: not UTF-8 text ({e.reason} at byte {e.start + 1}). "
                "Write the file again with UTF-8 strings."
            ) from None


def _label_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> the names of its classes, where the schema has them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
        return {
            name: [str(label) for label in kind["names"]]
            for name, kind in kinds.items()
            if kind.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}  # none, or none that we understand: the numbers stay
