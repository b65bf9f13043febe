"""Whether a file of ours is of the format, and the version of it, that is read: one check, one wording."""

from __future__ import annotations

from typing import Any

from glomo_dist.runtime.errors import DataError, GlomoError


def check_format(
    value: Any,
    format: str,
    version: int,
    where: object,
    what: str,
    *,
    again: str,
    instead: str | None = None,
    error: type[GlomoError] = DataError,
    other: type[GlomoError] | None = None,
) -> dict[str, Any]:
    """The content `value` of the JSON file `where`, which says that it is of this format and version.

    what: the file should be, as `error` says it; instead: what to do where it is something else (None: `again`).
    other: raised where only the version is another (None: `error`); again: what to do then.
    """
    if not isinstance(value, dict) or value.get("format") != format:
        found = value.get("format") if isinstance(value, dict) else None
        raise error(f"{where}: not {what}: format {found!r}, expected {format!r}. {instead or again}")
    found = value.get("version")
    if type(found) is not int or found != version:  # true and 1.0 are equal to 1
        raise (other or error)(
            f"{where}: format version {found!r}, this program reads version {version}. {again}"
        )
    return value
