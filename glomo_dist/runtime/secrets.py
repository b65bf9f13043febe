"""What an address has that is not for everyone's eyes."""

from __future__ import annotations

import re
from typing import Any

_USER = re.compile(r"(://)[^/\s]*@")  # up to the last @: a password may have one
# Up to the sentence's own punctuation; without a = in it, a ? may be of a pattern.
_QUERY = re.compile(r"(https?://[^\s?]*|://[^\s?]*(?=\?\S*=))\?[^\s'\"]*?(?=[,.:;)]*(?:[\s'\"]|$))")


def shown(text: str) -> str:
    """`text`, its addresses without query, user and password, so that it can be shown and stored."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def shown_in(value: Any) -> Any:
    """`value`, of what JSON knows, with every text as `shown`."""
    if isinstance(value, dict):
        return {key: shown_in(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown_in(item) for item in value]
    return shown(value) if isinstance(value, str) else value
