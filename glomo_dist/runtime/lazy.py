"""Names that a package offers, imported when they are used: a program that needs few of them starts at once."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, of which the import would take longer than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


def names(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of `package` (PEP 562): for each of its modules, "order" or further down "reading.order", the
    names that it offers; and the modules right in the package."""
    module_of = {name: module for module, offered in modules.items() for name in offered}

    def get(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
