"""JSON files: written whole, read with an error that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.files import ADVICE, reading, write_bytes


def write_json(path: str | Path, value: Any, more: str = ADVICE) -> None:
    """Replace `path` in one step, see `files.write_bytes`."""
    write_bytes(path, json_bytes(value), more)


def json_bytes(value: Any) -> bytes:
    """In UTF-8. A surrogate, as in the name of a file that is not UTF-8, is escaped, and is read back as it was."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def read_json(path: str | Path, *, keys_once: bool = False) -> Any:
    """Parsed JSON; a missing, unreadable or malformed file is a `DataError` that names it and the line.

    keys_once: so is one with a key twice in an object, of which JSON silently takes the last.
    """
    path = Path(path)
    with reading(path, DataError, "Expected a JSON file that you may read."):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path} does not exist.") from None
    return parse_json(content, str(path), keys_once)


def parse_json(content: bytes, where: str, keys_once: bool = False) -> Any:
    """Parsed JSON of the file `where`; DataError naming it and the line if it is not JSON."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=each_once if keys_once else None)
    except UnicodeDecodeError as e:
        raise DataError(f"{where} is not UTF-8 text (byte {e.start}).") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{where}, line {e.lineno}: not valid JSON ({e.msg}).") from None
    except ValueError as e:  # a number of thousands of digits, a key that is there twice
        raise DataError(f"{where}: JSON that cannot be read ({e}).") from None
    except RecursionError:
        raise DataError(f"{where}: JSON that is nested too deeply.") from None


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` of `json`: ValueError for a key that is there twice."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is there twice")
        values[key] = value
    return values
