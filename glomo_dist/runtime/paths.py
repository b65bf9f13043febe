"""Paths and addresses that mean the same in every folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from glomo_dist.runtime.errors import ConfigError


def absolute(place: str) -> str:
    """A path from the root, with ~ filled in; ~ before the name of nobody is a character like any other. An address
    as it is, but for a path at the end of a chain: "zip://x::all.zip" -> "zip://x::/home/me/all.zip"."""
    links, chain, last = place.rpartition("::")
    if "://" in links and "://" not in last:
        return links + chain + absolute(last)
    return place if "://" in place else str(Path(os.path.expanduser(place)).absolute())


def output(place: str | Path, name: str = "output") -> Path:
    """The path of what is written. ConfigError for an address, also one of which Path has made s3:/bucket, and for
    the empty name of a shell's variable that is not set: it would be the current folder.  name: in the error."""
    text = os.fspath(place)
    if not text.strip():
        raise ConfigError(f"{name} is empty. Give a path.")
    if re.match(r"[a-zA-Z][\w+.:-]*:/", text):
        raise ConfigError(f"{name} {text} is an address. Give a path: only inputs may be addresses.")
    return Path(place)


def user_cache(name: str) -> Path:
    """glomo/NAME in the user's cache folder (XDG_CACHE_HOME, else ~/.cache); ConfigError where no home is known."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base == "~/.cache":
        raise ConfigError(
            "this user has no home folder, in which to keep a cache. Set XDG_CACHE_HOME to a folder."
        )
    return Path(base, "glomo", name)
