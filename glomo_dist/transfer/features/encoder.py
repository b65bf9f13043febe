"""The states of words in a frozen encoder of Hugging Face `transformers`: sub-words joined, long texts in windows."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from glomo_dist.data.storage.lines import HALF_PAIR
from glomo_dist.runtime.devices import Device
from glomo_dist.runtime.errors import ConfigError, DataError, describe, lacks_memory
from glomo_dist.transfer.features.encoder_files import load, locate, tokenizer_and_config
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.features.text_windows import Window, windows

BATCH_TOKENS = 4096
MOST_TOKENS = 512  # in one pass, if the encoder sets no smaller limit
ALL_UNKNOWN = 20  # so many different words, none of them known, are no chance


def require_usable(spec: FeatureSpec) -> None:
    """ConfigError for an encoder without a tokenizer or the layer. Weights are read only if it seems to lack that."""
    folder = locate(spec.source)
    _, config = tokenizer_and_config(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layers is None or not -layers - 1 <= spec.layer <= layers:
        # The model itself has the last word: Funnel has states of more layers than it says.
        Encoder(folder, spec.layer, spec.pool)


class Encoder:
    """A frozen encoder and its tokenizer. Raises ConfigError for a folder or a layer that cannot be used."""

    def __init__(
        self,
        folder: Path,
        layer: int = -1,
        pool: Literal["mean", "first"] = "mean",
        device: Device = "cpu",
    ) -> None:
        self.tokenizer, self.model = load(folder)
        self.folder, self.layer, self.pool = folder, layer, pool
        self.accepted = inspect.signature(self.model.forward).parameters
        # Words are given apart. Some byte-level tokenizers only know one again with the space before it.
        ids = [
            self.tokenizer(text, is_split_into_words=apart, add_special_tokens=False)["input_ids"]
            for text, apart in (("a b", False), (["a", "b"], True))
        ]
        self.before = "" if ids[0] == ids[1] else " "
        self.tokenizer.truncation_side = "right"
        # two fewer than there are positions: RoBERTa and its like count them from the padding token's number on
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 0
        limit = positions - 2 if positions > 0 else MOST_TOKENS  # XLNet says -1: any number
        self.most = min(MOST_TOKENS, limit, self.tokenizer.model_max_length)
        self.capacity = self.most - self.tokenizer.num_special_tokens_to_add()
        if self.capacity < 1:
            raise ConfigError(f"{folder} takes {self.most} tokens at once, which leaves none for words.")
        # where the tokenizer has no token for padding any will do, as the attention mask leaves it out
        self.padding = self.tokenizer.pad_token_id or 0
        # on the processor: what fails there is an error, and on a GPU the end of CUDA in this process
        self.width, self.padded = self._trial()
        self.model.to(device)

    def require_known(self, words: Iterable[str]) -> None:
        """DataError if the tokenizer knows none of them, though they are many. Ask with those of a whole data set."""
        different, unknown = list(dict.fromkeys(words)), self.tokenizer.unk_token_id
        for at in range(0, len(different), 1000):  # as a rule the first ones do
            if any(ids and unknown not in ids for ids in self._sub_words(different[at : at + 1000])):
                return
        if len(different) >= ALL_UNKNOWN:
            raise DataError(
                f"the encoder's tokenizer knows none of {len(different)} words ({different[:3]} …). Wrong "
                "language, or the tokenizer of another encoder?"
            )

    @torch.inference_mode()
    def states(self, texts: Sequence[list[str]]) -> np.ndarray[Any, Any]:
        """The words of all texts one after the other: float16 [words, width]. A word without sub-words is zero."""
        sizes = self._sizes(texts)
        pieces = []
        at = 0
        for text, size in zip(texts, sizes, strict=True):
            if text:
                pieces += [_Piece(text, at, window) for window in windows(size, self.capacity)]
            at += len(text)
        found = np.zeros((at, self.width), np.float16)
        if not pieces:
            return found
        encoded = self.tokenizer(
            [self._written(p.words[p.window.first : p.window.last]) for p in pieces],
            is_split_into_words=True,
            truncation=True,
            max_length=self.most,
            return_attention_mask=True,
        )
        for batch in _batches([len(ids) for ids in encoded["input_ids"]], self.padded):
            values = {name: [of_rows[row] for row in batch] for name, of_rows in encoded.items()}
            for row, hidden in zip(batch, self._hidden(values)[self.layer].cpu(), strict=True):
                piece, window = pieces[row], pieces[row].window
                states = self._joined(hidden, encoded.word_ids(row), window.last - window.first)
                kept = states[window.begin - window.first : window.end - window.first]
                with np.errstate(over="ignore"):  # what is too large for float16 is reported below
                    found[piece.at + window.begin : piece.at + window.end] = kept
        if not np.isfinite(found).all():
            raise DataError(
                "the encoder's states are too large for float16 or not finite. Take another layer."
            )
        return found

    def _written(self, words: list[str]) -> list[str]:
        """The words as the tokenizer gets them; half a surrogate pair, which is no character, as U+FFFD."""
        return [self.before + HALF_PAIR.sub("\ufffd", word) for word in words]

    def _sizes(self, texts: Sequence[list[str]]) -> list[list[int]]:
        """Sub-words of every word."""
        words = sorted({word for text in texts for word in text})
        if not words:
            return [[] for _ in texts]
        size = dict(zip(words, map(len, self._sub_words(words)), strict=True))
        return [[size[word] for word in text] for text in texts]

    def _sub_words(self, words: list[str]) -> list[list[int]]:
        return self.tokenizer(
            [[word] for word in self._written(words)], is_split_into_words=True, add_special_tokens=False
        )["input_ids"]

    def _hidden(self, values: Mapping[str, list[list[int]]]) -> Sequence[torch.Tensor]:
        """The states [N, tokens, width] of every layer; the rows of `values` are padded to one length."""
        longest = max(map(len, values["input_ids"]))
        given = {}
        for name, rows in values.items():
            fill = self.padding if name == "input_ids" else 0
            if name in self.accepted:
                filled = [[*row, *[fill] * (longest - len(row))] for row in rows]
                given[name] = torch.tensor(filled, device=self.model.device)
        return tuple(self.model(**given, output_hidden_states=True).hidden_states)

    @torch.inference_mode()
    def _trial(self) -> tuple[int, bool]:
        """The width of the states, and whether rows may be padded, by a few tokens, the largest number among them."""
        numbers = sorted(self.tokenizer.get_vocab().values())
        tokens = [numbers[-1], *numbers[:6]][: max(1, self.most // 2)]
        ones = [1] * len(tokens)
        try:
            hidden = self._hidden({"input_ids": [tokens], "attention_mask": [ones]})
        except Exception as e:  # a model of images, a number beyond the embeddings: each fails in its own way
            if lacks_memory(e):
                raise
            raise ConfigError(
                f"{self.folder} cannot be run over {len(tokens)} tokens: {describe(e):.300}. Expected an encoder of "
                "text, and the tokenizer that belongs to it."
            ) from e
        layers = len(hidden) - 1
        if not -layers - 1 <= self.layer <= layers:
            raise ConfigError(
                f"{self.folder} has the layers 0 to {layers} (0: the embeddings), asked for {self.layer}."
            )
        found = hidden[self.layer].shape
        if found[:2] != (1, len(tokens)):
            raise ConfigError(
                f"{self.folder}: layer {self.layer} has {found[1]} states for {len(tokens)} tokens, expected one "
                "each. Take another layer."
            )
        # In some encoders (with convolutions, with Fourier transforms) padding changes the states.
        alone, twice = hidden[self.layer][0], [tokens, tokens * 2]
        try:
            both = self._hidden({"input_ids": twice, "attention_mask": [ones, ones * 2]})[self.layer]
        except Exception as e:
            if lacks_memory(e):
                raise
            return int(found[2]), False
        near = 1e-3 * float(alone.abs().mean())  # as near as float16 is
        same = "attention_mask" in self.accepted and torch.allclose(both[0, : len(tokens)], alone, 1e-3, near)
        return int(found[2]), same

    def _joined(self, hidden: torch.Tensor, word_of: list[int | None], words: int) -> np.ndarray[Any, Any]:
        """float32 [words, width] from the states [tokens, width] of their sub-words."""
        tokens = [
            (t, w)
            for t, w in enumerate(word_of)
            if w is not None and (self.pool == "mean" or t == 0 or word_of[t - 1] != w)
        ]
        states = hidden.new_zeros(words, hidden.shape[1])
        if tokens:
            at, of = torch.tensor(tokens).T
            states.index_add_(0, of, hidden[at])
            states /= of.bincount(minlength=words).clamp(min=1)[:, None]
        return states.numpy()


def _batches(lengths: list[int], padded: bool) -> Iterator[list[int]]:
    """Numbers of rows of about one length, or of exactly one unless `padded`, of about BATCH_TOKENS tokens.

    Rows without a token are left out.
    """
    rows = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row])
    at = 0
    while at < len(rows):
        longest = lengths[rows[at]]
        batch = rows[at : at + max(1, BATCH_TOKENS // longest)]
        if not padded:
            batch = [row for row in batch if lengths[row] == longest]
        yield batch
        at += len(batch)


@dataclass(frozen=True)
class _Piece:
    words: list[str]
    at: int  # of the text's first word among all
    window: Window
