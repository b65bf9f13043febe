"""glomo-dist: unsupervised pretraining of sparse relational graphs (GLoMo) and their transfer.

Its parts are imported when they are used.
"""

from __future__ import annotations

from glomo_dist.runtime import lazy

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "cli",
    "data",
    "evaluate",
    "graphs",
    "model",
    "pretrain",
    "recipes",
    "report",
    "runtime",
    "transfer",
]

__getattr__ = lazy.names(__name__, dict.fromkeys(__all__, ()))


def __dir__() -> list[str]:
    return __all__
