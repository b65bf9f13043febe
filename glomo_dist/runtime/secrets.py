"""What an address has that is not for everyone's eyes."""

from __future__ import annotations

import re

_USER = re.compile(r"(://)[^/\s@]*@")
# Up to the sentence's own punctuation; without a = in it, a ? may be of a pattern.
_QUERY = re.compile(r"(https?://[^\s?]*|://[^\s?]*(?=\?\S*=))\?[^\s'\"]*?(?=[,.:;)]*(?:[\s'\"]|$))")


def shown(text: str) -> str:
    """`text`, its addresses without query, user and password, so that it can be shown and stored."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))
