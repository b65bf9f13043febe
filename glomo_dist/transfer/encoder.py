"""The states of words in a frozen encoder of Hugging Face `transformers`: sub-words joined, long texts in windows.

Any encoder with a fast tokenizer, from a folder or by its name on the hub. Weights are read from safetensors only,
and code that comes with a model is never run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from glomo_dist.runtime import files
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.transfer.features import FeatureSpec

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # of an encoder: weights, configuration, tokenizer
BATCH_TOKENS = 4096
MOST_TOKENS = 512  # in one pass, if the encoder sets no smaller limit


def locate(source: str) -> Path:
    """The folder of an encoder: `source` itself, or its copy in the cache of the hub, loaded if it is not there.

    Raises ConfigError if there is none, or none in safetensors.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        _require_transformers()
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=list(FILES)))
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"features hf:{source}: no such folder, and not on the hub or not reachable "
                f"({str(e).splitlines()[0]}). Give the folder of an encoder saved by transformers."
            ) from e
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"features hf:{source}: expected config.json and weights as .safetensors in {folder}. Pickled weights "
            "can run code and are not read: load the model once and save it with save_pretrained."
        )
    return folder


def encoder_fingerprint(spec: FeatureSpec) -> str:
    """Of the encoder's files, the layer and the pooling."""
    folder = locate(spec.source)
    names = sorted(path.name for pattern in FILES for path in folder.glob(pattern))
    return fingerprint([[[n, files.sha256_file(folder / n)] for n in names], spec.layer, spec.pool])


class Encoder:
    """A frozen encoder and its tokenizer. Raises ConfigError for a folder or a layer that cannot be used."""

    def __init__(self, folder: Path, layer: int = -1, pool: Literal["mean", "first"] = "mean") -> None:
        _require_transformers()
        import transformers

        transformers.utils.logging.disable_progress_bar()
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, add_prefix_space=True, trust_remote_code=False
            )
            with torch.random.fork_rng(devices=[]):  # a job's numbers do not depend on what was in the cache
                model = transformers.AutoModel.from_pretrained(
                    folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
                )
        except (OSError, ValueError, KeyError, ImportError) as e:
            raise ConfigError(f"{folder} cannot be loaded by transformers: {str(e).splitlines()[0]}") from e
        if not self.tokenizer.is_fast:
            raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json), which tells words apart.")
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        layers = model.config.num_hidden_layers
        if not -layers - 1 <= layer <= layers:
            raise ConfigError(
                f"{folder} has the layers 0 to {layers} (0: the embeddings), asked for {layer}."
            )
        self.layer, self.pool = layer, pool
        # Words are given apart. Some byte-level tokenizers only know one again with the space before it.
        ids = [
            self.tokenizer(text, is_split_into_words=apart, add_special_tokens=False)["input_ids"]
            for text, apart in (("a b", False), (["a", "b"], True))
        ]
        self.before = "" if ids[0] == ids[1] else " "
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        # two fewer than there are positions: RoBERTa and its like count them from the padding token's number on
        positions = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS + 2
        self.most = min(MOST_TOKENS, positions - 2, self.tokenizer.model_max_length)

    @torch.inference_mode()
    def states(self, texts: Sequence[list[str]]) -> np.ndarray[Any, Any]:
        """The words of all texts one after the other: float16 [words, width]. A word without sub-words is zero."""
        sizes = self._sizes(texts)
        capacity = self.most - self.tokenizer.num_special_tokens_to_add()
        pieces = []
        at = 0
        for text, size in zip(texts, sizes, strict=True):
            if text:
                pieces += [_Piece(text, sum(size[w.first : w.last]), at, w) for w in windows(size, capacity)]
            at += len(text)
        pieces.sort(key=lambda piece: -piece.size)
        found: np.ndarray[Any, Any] | None = None
        for batch in self._batches(pieces):
            for piece, states in zip(batch, self._run(batch), strict=True):
                if found is None:
                    found = np.zeros((at, states.shape[1]), np.float16)
                first, kept = piece.window.first, slice(piece.window.begin, piece.window.end)
                found[piece.at + kept.start : piece.at + kept.stop] = states[
                    kept.start - first : kept.stop - first
                ]
        if found is None:
            found = np.zeros((at, self.model.config.hidden_size), np.float16)
        if not np.isfinite(found).all():
            raise DataError(
                "the encoder's states are too large for float16 or not finite. Take another layer."
            )
        return found

    def _sizes(self, texts: Sequence[list[str]]) -> list[list[int]]:
        """Sub-words of every word."""
        words = sorted({word for text in texts for word in text})
        if not words:
            return [[] for _ in texts]
        encoded = self.tokenizer(
            [[self.before + word] for word in words], is_split_into_words=True, add_special_tokens=False
        )
        size = dict(zip(words, map(len, encoded["input_ids"]), strict=True))
        return [[size[word] for word in text] for text in texts]

    def _batches(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        at = 0
        while at < len(pieces):
            count = max(1, BATCH_TOKENS // max(1, pieces[at].size))
            yield pieces[at : at + count]
            at += count

    def _run(self, batch: list[_Piece]) -> list[np.ndarray[Any, Any]]:
        """float32 [words, width] of each piece."""
        encoded = self.tokenizer(
            [[self.before + w for w in p.words[p.window.first : p.window.last]] for p in batch],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self.most,
            return_tensors="pt",
        )
        hidden = self.model(**encoded, output_hidden_states=True).hidden_states[self.layer]
        found = []
        for row, piece in enumerate(batch):
            word_of = encoded.word_ids(row)
            tokens = [
                (t, w)
                for t, w in enumerate(word_of)
                if w is not None and (self.pool == "mean" or t == 0 or word_of[t - 1] != w)
            ]
            states = hidden.new_zeros(piece.window.last - piece.window.first, hidden.shape[2])
            if tokens:
                at, of = torch.tensor(tokens).T
                states.index_add_(0, of, hidden[row, at])
                states /= of.bincount(minlength=len(states)).clamp(min=1)[:, None]
            found.append(states.numpy())
        return found


@dataclass(frozen=True)
class Window:
    """Words first .. last - 1 of a text are encoded together; the states of begin .. end - 1 are taken from them."""

    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Piece:
    words: list[str]
    size: int  # sub-words
    at: int  # of the text's first word among all
    window: Window


def windows(sizes: Sequence[int], capacity: int) -> list[Window]:
    """Cut a text whose words have `sizes` sub-words into windows of at most `capacity` (a longer word is alone).

    Each window begins in the middle of the one before it. Of the words that two share, each takes the first half, so
    that every word has words on both sides where there are any.
    """
    spans: list[tuple[int, int]] = []
    first = 0
    while not spans or spans[-1][1] < len(sizes):
        last, size = first, 0
        while last < len(sizes) and (last == first or size + sizes[last] <= capacity):
            size += sizes[last]
            last += 1
        spans.append((first, last))
        first = max(first + 1, (first + last + 1) // 2)
    bounds = [0, *((b + e) // 2 for (_, e), (b, _) in pairwise(spans)), len(sizes)]
    kept = pairwise(bounds)
    return [Window(*span, *words) for span, words in zip(spans, kept, strict=True)]


def _require_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "features hf:…: the package transformers is not installed. Install it: pip install 'glomo-dist[hf]'."
        )
