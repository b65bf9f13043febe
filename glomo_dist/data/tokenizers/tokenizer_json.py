"""What the JSON forms of tokenizers have in common: format, version and kind, and a fingerprint of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.formats import check_format

FORMAT, VERSION = "glomo-tokenizer", 1


class Named(Protocol):
    kind: str

    @property
    def fingerprint(self) -> str: ...


T = TypeVar("T", bound=Named)


def form_of(tokenizer: Named, content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a tokenizer that consists of `content`."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "kind": tokenizer.kind,
        "fingerprint": tokenizer.fingerprint,
    }
    return {**head, **content}


def check_header(value: Any, kind: str | None, where: str) -> None:
    """Format, version and (unless None) kind of a tokenizer's JSON form, or DataError."""
    check_format(
        value, FORMAT, VERSION, where, "a tokenizer",
        instead="Name the tokenizer.json of shards that `glomo prepare` wrote.", again="Prepare the data again.",
    )  # fmt: skip
    if kind is not None and value.get("kind") != kind:
        raise DataError(f"{where}: expected a tokenizer of kind {kind!r}, got {value.get('kind')!r}.")


def restored(make: Callable[[], T], value: Mapping[str, Any], where: str) -> T:
    """What `make` makes of the content of `value`; DataError naming `where` if it is not what was written."""
    try:
        tokenizer = make()
    except DataError as e:
        raise DataError(f"{where}: {e}") from None
    if tokenizer.fingerprint != value.get("fingerprint"):
        raise DataError(
            f"{where}: the content has fingerprint {tokenizer.fingerprint}, the file says "
            f"{value.get('fingerprint')!r}: it was changed after it was written. Restore it or prepare again."
        )
    return tokenizer
