"""Paths and addresses that mean the same in every folder."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(place: str) -> str:
    """A path from the root, with ~ filled in; ~ before the name of nobody is a character like any other. An address
    as it is, but for a path at the end of a chain: "zip://x::all.zip" -> "zip://x::/home/me/all.zip"."""
    links, chain, last = place.rpartition("::")
    if "://" in links and "://" not in last:
        return links + chain + absolute(last)
    return place if "://" in place else str(Path(os.path.expanduser(place)).absolute())
