"""What the paths of a plan hold: the content by which graphs, word vectors and encoders count in a job's name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from glomo_dist.data.tokenizers.tokenizer import TOKENIZER, load_tokenizer
from glomo_dist.graphs.index import PredictorKind
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.bundled import bundled
from glomo_dist.model.io import config_of, read_meta
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.paths import absolute
from glomo_dist.transfer.features.encoder import require_usable
from glomo_dist.transfer.features.encoder_files import encoder_fingerprint
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.features.word_vectors import vectors_content
from glomo_dist.transfer.predictor import finished_model


def graphs_at(place: str) -> str:
    """A store's or model's path that means the same in every folder; `glomo:NAME` as it is."""
    return place if bundled(place) else absolute(place)


@dataclass(frozen=True)
class Graphs:
    """What a plan asks of the graphs at a path.

    task: that they are of, None where they can be of any.  unit: of the tasks that a model can be for, None where its
        folder does not say it, and of a store.
    """

    fingerprint: str
    layers: int
    heads: int
    task: str | None
    predictor: PredictorKind
    unit: str | None = None

    @classmethod
    def at(cls, path: str) -> Graphs:
        """Of a store, or of a model that is to compute them: models in folders are trained ones."""
        if folder := finished_model(path):
            meta = read_meta(folder)
            config = config_of(meta, folder)
            content = {
                "model": meta["fingerprint"],
                "layers": config.layers,
                "heads": config.heads,
                "task": None,
            }
            unit = load_tokenizer(folder).kind if (folder / TOKENIZER).is_file() else None
            return cls(fingerprint(content), config.layers, config.heads, None, "trained", unit)
        info = GraphStore.open(path).info
        return cls(info.fingerprint, info.layers, info.heads, info.task, info.predictor)


class Contents:
    """What is in each store or model, and the hash of each file, read once per plan."""

    def __init__(self) -> None:
        self._graphs: dict[str, Graphs] = {}
        self._features: dict[str, str] = {}

    def graphs(self, path: str) -> Graphs:
        if path not in self._graphs:
            self._graphs[path] = Graphs.at(path)
        return self._graphs[path]

    def features(self, text: str) -> str:
        """The spec with what it names replaced by its content."""
        if text not in self._features:
            spec = FeatureSpec.parse(text)
            source = spec.source
            if spec.kind == "vectors":
                source = vectors_content(source)
            elif spec.kind == "states":
                source = encoder_fingerprint(spec)
                try:
                    require_usable(spec)
                except ConfigError as e:
                    raise ConfigError(f"plan: features {text!r}: {e}") from e
            self._features[text] = str(dataclasses.replace(spec, source=source))
        return self._features[text]
