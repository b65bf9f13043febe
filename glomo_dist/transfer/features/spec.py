"""What a task model sees of each unit: frozen word vectors, learned embeddings, an encoder's states, or pixels.

A spec is a string: "pixels", "learned" or "learned:WIDTH", the path or URL of word vectors, or
"hf:ENCODER[@LAYER[,first]]": the states of a Hugging Face encoder (see states.py). "trnn:" before any spec of words
puts a recurrent layer of the task over it, whose states are the features.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Literal

from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.paths import absolute
from glomo_dist.runtime.secrets import shown


@dataclass(frozen=True)
class FeatureSpec:
    """A parsed spec.

    recurrent: whether a recurrent layer of the task comes on top ("trnn:").
    width: of learned vectors, None for the default.
    source: file or URL of vectors, or the folder or name of an encoder.
    layer: of the encoder, as in its `hidden_states`: 0 the embeddings, -1 the last.
    pool: what a word of several sub-words gets: the mean of their states, or that of the first.
    """

    kind: Literal["pixels", "learned", "vectors", "states"]
    recurrent: bool = False
    width: int | None = None
    source: str = ""
    layer: int = -1
    pool: Literal["mean", "first"] = "mean"

    @classmethod
    def parse(cls, spec: str) -> FeatureSpec:
        """Raises ConfigError for a spec that is none."""
        below = spec.removeprefix("trnn:")
        recurrent = below != spec
        kind, colon, rest = below.partition(":")
        if not spec:
            raise ConfigError(
                "features '': expected learned, learned:WIDTH, pixels, a file of word vectors or hf:ENCODER."
            )
        if recurrent and below in ("", "pixels"):
            raise ConfigError(f"features {spec!r}: trnn: needs features of words after it.")
        if below == "pixels":
            return cls("pixels")
        if kind == "learned" and (colon or not rest):
            if colon and (not _WIDTH.fullmatch(rest) or int(rest) < 1):
                raise ConfigError(
                    f"features {spec!r}: expected learned or learned:WIDTH with a width from 1 to 999,999,999."
                )
            return cls("learned", recurrent, int(rest) if colon else None)
        if kind == "hf" and colon:
            source, layer, pool = _ENCODER.fullmatch(rest).groups()  # type: ignore[union-attr]
            if not source or len(layer or "") > 9:
                raise ConfigError(
                    f"features {spec!r:.80}: expected {ENCODER_SPEC}, with a LAYER that an encoder has."
                )
            of_word: Literal["mean", "first"] = "first" if pool == "first" else "mean"
            return cls("states", recurrent, None, source, int(layer or -1), of_word)
        return cls("vectors", recurrent, None, below)

    def __str__(self) -> str:
        text = {
            "pixels": "pixels",
            "learned": "learned" if self.width is None else f"learned:{self.width}",
            "vectors": self.source,
            "states": f"hf:{self.source}@{self.layer},{self.pool}",
        }[self.kind]
        return f"trnn:{text}" if self.recurrent else text

    def short(self) -> str:
        """The spec with the name of the file or folder alone, up to its first dot, of an address without its secrets.
        Part of job ids: a change here would run every finished job again. For people there is `features_name` of
        report/groups.py."""
        name = shown(self.source).rstrip("/").rsplit("/", 1)[-1]
        if self.kind == "vectors":
            name = name.split(".")[0] or name
        return str(replace(self, source=name))

    def absolute(self) -> str:
        """The spec with an absolute path, since jobs may run in another folder; URLs and names stay."""
        if self.kind == "vectors" or (
            self.kind == "states" and os.path.isdir(os.path.expanduser(self.source))
        ):
            return str(replace(self, source=absolute(self.source)))
        return str(self)


ENCODER_SPEC = "hf:ENCODER[@LAYER[,first]]"
# A layer only counts as one at the end: an encoder's path may have an @ in it.
_ENCODER = re.compile(r"(.*?)(?:@(-?\d+)(?:,(mean|first))?)?", re.DOTALL)
_WIDTH = re.compile(r"[0-9]{1,9}")
