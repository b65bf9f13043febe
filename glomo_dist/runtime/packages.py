"""Packages of others that a part of the program needs: asked for before it begins, not met in its middle."""

from __future__ import annotations

import importlib.util
import sys

from glomo_dist.runtime.errors import ConfigError


def require(package: str, what: str, install: str = "", *, instead: str = "") -> None:
    """ConfigError if `package` is not installed; it is not imported.

    what: needs it.  install: what pip is to be given, if that is not its name.  instead: a sentence on what does
    without it.
    """
    if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{what}: the package {package} is not installed. Install it: pip install {install or package}."
            + (f" {instead}" if instead else "")
        )
