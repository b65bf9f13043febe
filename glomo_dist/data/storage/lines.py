"""Lines of text files and of JSON-lines files, with errors that name file and line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from glomo_dist.data.storage.files import InputFile
from glomo_dist.data.storage.packed import open_stream
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.json_files import each_once

# Half of a surrogate pair, which JSON can hold and which is no character.
HALF_PAIR = re.compile("[\ud800-\udfff]")


def numbered_lines(file: InputFile) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) without their ends; a byte that is not UTF-8 is an error with its place."""
    at = 0
    with open_stream(file) as stream:
        for number, line in enumerate(stream, 1):
            # 0 and not b"\0": for bytes, `in` first tries whether they are a number
            if (at == 0 or 0 in line) and (wide := _wide(line, at)):
                raise DataError(
                    f"{file.name}, line {number}: a byte order mark or zero bytes, so it is "
                    f"{wide[:6].upper()} or binary. Convert the file first, e.g. iconv -f {wide} -t utf-8."
                )
            at += len(line)
            try:
                # A mark of byte order may begin any line: files are packed and joined with theirs.
                text = line.decode().removeprefix("\ufeff")
            except UnicodeDecodeError as e:
                raise DataError(
                    f"{file.name}, line {number}, byte {e.start + 1} of the line (0x{line[e.start]:02x}): not UTF-8 "
                    "text. Convert the file first, e.g. iconv -f latin1 -t utf-8."
                ) from None
            yield number, text.rstrip("\r\n")


def _wide(line: bytes, at: int) -> str | None:
    """Which UTF-16 or UTF-32 it is, if `line`, which begins at byte `at` of a file, is of such text: by the mark of
    byte order that the file begins with, or by where most of the zero bytes stand. None if there are neither."""
    if at == 0 and line.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if at == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if 0 not in line:
        return None
    if (zeros := line.find(b"\0\0\0")) >= 0:
        return "utf-32le" if (at + zeros) % 4 else "utf-32be"
    return "utf-16le" if 2 * line[(at + 1) % 2 :: 2].count(0) > line.count(0) else "utf-16be"


def json_objects(file: InputFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every line that is not blank."""
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=each_once)
        except json.JSONDecodeError as e:
            raise DataError(
                f"{where}: not valid JSON ({e.msg}, column {e.colno}). Mend or delete the line."
            ) from None
        except (RecursionError, ValueError) as e:  # nested too deeply; a key twice; thousands of digits
            raise DataError(f"{where}: {e}. Mend or delete the line.") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: expected a JSON object, got {type(row).__name__}. Write one object a line."
            )
        yield number, row
