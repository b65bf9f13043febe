"""Rows of Parquet files, with errors that name file, row and column."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from glomo_dist.data.storage.files import InputFile
from glomo_dist.data.storage.packed import open_seekable
from glomo_dist.runtime.errors import DataError, describe, suggest

ROWS = 1024  # at a time in memory


def parquet_rows(
    file: InputFile, columns: Sequence[str], optional: Sequence[str] = (), advice: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 0) and values by column of every row.

    columns: those to read; `advice` ends the error for one that is not there.  optional: read where they are there.

    Whole numbers for which the file has names (the ClassLabel of Hugging Face's datasets) are given as these names; a
    number without one, such as the -1 of a row without a label, stays.
    """
    import pyarrow as pa  # 45 MB, and of use for these files only
    import pyarrow.parquet as pq

    with open_seekable(file) as stream:
        try:
            table = pq.ParquetFile(stream, page_checksum_verification=True)  # where it has them
            known = table.schema_arrow.names
            for name in columns:
                if name not in known:
                    raise DataError(f"{file.name}: no column {name!r}{advice}.{suggest(name, known)}")
            wanted = [name for name in known if name in columns or name in optional]
            for name in wanted:
                if known.count(name) > 1:
                    raise DataError(
                        f"{file.name}: {known.count(name)} columns have the name {name!r}. Give each its own."
                    )
            labels = _label_names(table.schema_arrow.metadata)
            row = 0
            for batch in table.iter_batches(batch_size=ROWS, columns=wanted):
                values = [_values(batch, name, row, file, labels.get(name, [])) for name in wanted]
                for found in zip(*values, strict=True):
                    yield row, dict(zip(wanted, found, strict=True))
                    row += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:  # the last for the name of a column
            raise DataError(f"{file.name} is not a whole Parquet file: {describe(e)}. Copy it again.") from e


def _values(batch: Any, name: str, row: int, file: InputFile, labels: Sequence[str]) -> Iterator[Any]:
    for number, scalar in enumerate(batch.column(name), row):
        try:
            value = scalar.as_py()
        except Exception as e:
            # Parquet does not check what is called a string; not every time and structure is one of Python's.
            what = f"cannot be read ({describe(e)})"
            if isinstance(e, UnicodeDecodeError):
                what = f"not UTF-8 text ({e.reason} at byte {e.start + 1})"
            raise DataError(
                f"{file.name}, row {number}, column {name!r}: {what}. Write the file again with UTF-8 strings and "
                "plain numbers."
            ) from None
        yield labels[value] if type(value) is int and 0 <= value < len(labels) else value


def _label_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> the names of its classes, where the schema has them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}  # none, or of another kind: the numbers stay
    kinds = {
        name: kind for name, kind in features if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }
    return {name: _in_order(kind.get("names")) for name, kind in kinds.items()}


def _in_order(names: Any) -> list[str]:
    """A list, or as a set's description has them, by number: {"0": "negative", "1": "positive"}."""
    if isinstance(names, dict) and all(str(number) in names for number in range(len(names))):
        names = [names[str(number)] for number in range(len(names))]
    return [str(name) for name in names] if isinstance(names, list) else []
