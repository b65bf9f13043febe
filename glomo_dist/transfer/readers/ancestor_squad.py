"""The authors' SQuAD readers from their state dicts: paragraph and question in, the answer's first and last word out.

`ancestor.fuse` has the part that takes in the graphs; this is what stands around it. In evaluation: nothing is
dropped. (Their pointer drops units in evaluation too, which is not repeated.) What differs from `SpanReader`, because
their numbers depend on it: a question is read to its padded length, backwards from the padding, and the padding of a
paragraph takes part in what the question makes of it.

Shapes: B batch, T units of the paragraph or (J) the question, C characters of a word, E width of ELMo's states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.ancestor import fuse, gru_cell, gru_weights, linear, option, parameter

EPSILON = 1e-16  # beside the sum of squared scores
PADDING = -1.0000000150474662e30  # -1e30 in float32, in which the authors have their masks
LONGEST = 16  # words of a predicted answer, which is best_spans(logits, LONGEST) of spans.py
State = Mapping[str, Tensor]


class Text(NamedTuple):
    """Paragraphs or questions of a batch, with what the model was trained on."""

    words: Tensor  # int64 [B, T], 0 for padding, which is at the end
    characters: Tensor  # int64 [B, T, C], 0 for padding
    graphs: Tensor | None = None  # [B, 2 * layers, K, T, T], forward layers then backward ones
    elmo: Tensor | None = None  # [B, 3, T, E]

    @property
    def real(self) -> Tensor:
        """bool [B, T]: which units are no padding."""
        return self.words > 0


def span_logits(state_dict: State, options: Mapping[str, Any], paragraph: Text, question: Text) -> Tensor:
    """Logits [B, 2, T] of the answer's first and last word, PADDING beyond its paragraph.

    state_dict: parameters under the authors' names; word vectors and ELMo's states are used if it knows them.
    options: those of `fuse` (a model trained without graphs fuses nothing), `original_ptr` (a pointer network
        instead of two more layers) and `square` (squared scores instead of softmax between two texts; with
        `trnn` their model does not look at it), bare or after `config/`; others are not looked at.
    Raises CheckpointError naming the parameter that is missing or of another size, ConfigError for inputs.
    """
    lengths = paragraph.real.sum(1)
    if not lengths.all():
        raise ConfigError("ancestor reader: each paragraph must have a word (an id other than 0).")
    square = bool(option(options, "square")) and not option(options, "trnn")
    p = _encoded(state_dict, options, paragraph, lengths)
    q = _encoded(state_dict, options, question, None)
    met = _attention(state_dict, "qc_att", p, q, question.real, square)
    read = linear(state_dict, "linear_1.0", met).relu()
    again = _recurrent(state_dict, "rnn_2", read, lengths)
    own = _attention(state_dict, "self_att", again, again, paragraph.real, square)
    read = read + linear(state_dict, "linear_2.0", own).relu()
    if option(options, "original_ptr"):
        states = _recurrent(state_dict, "rnn_3", read, lengths)
        return _pointed(state_dict, states, q, paragraph.real, question.real)
    first = _recurrent(state_dict, "rnn_start", read, lengths)
    last = _recurrent(state_dict, "rnn_end", torch.cat([read, first], 2), lengths)
    scores = [linear(state_dict, f"linear_{n}", x) for n, x in (("start", first), ("end", last))]
    return torch.cat(scores, 2).transpose(1, 2) + _hidden(paragraph.real, read)[:, None]


def span_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the first plus that of the last word, labels int64 [B, 2], mean over the batch."""
    return 2 * F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _encoded(state_dict: State, options: Mapping[str, Any], text: Text, lengths: Tensor | None) -> Tensor:
    """Word vectors, characters and what the graphs bring, read in both directions. -> [B, T, width]

    With `trnn` the graphs lie on the states of the recurrent layer, else on the word vectors below it.
    """
    words, characters = _words(state_dict, text), _characters(state_dict, text.characters)
    given, real = [words, characters], text.real
    if option(options, "trnn"):
        states = _recurrent(state_dict, "rnn", torch.cat(given, 2), lengths)
        return torch.cat([states, fuse(state_dict, options, text.graphs, states, real)], 2)
    if "scales" in state_dict or text.graphs is not None or option(options, "uniform_graph"):
        fused = fuse(state_dict, options, text.graphs, words, real)
        # a plain concatenation begins with the words, which are there already
        given.append(fused if option(options, "gate_fuse") else fused[:, :, words.shape[2] :])
    return _recurrent(state_dict, "rnn", torch.cat(given, 2), lengths)


def _words(state_dict: State, text: Text) -> Tensor:
    """The word vectors, the learned mean of ELMo's layers, or one after the other. [B, T, D]"""
    found = []
    if "word_emb.weight" in state_dict or "elmo_scale" not in state_dict:
        found.append(
            F.embedding(text.words, parameter(state_dict, "word_emb.weight", None, None), padding_idx=0)
        )
    if "elmo_scale" in state_dict:
        if text.elmo is None:
            raise ConfigError("ancestor reader: this model was trained on ELMo's states: give Text.elmo.")
        share = parameter(state_dict, "elmo_mixt_logits", text.elmo.shape[1]).softmax(0)
        found.append(torch.einsum("l,blte->bte", share, text.elmo) * state_dict["elmo_scale"])
    return torch.cat(found, 2)


def _characters(state_dict: State, ids: Tensor) -> Tensor:
    """A convolution over the characters of each word, the largest value of each channel. [B, T, C] -> [B, T, F]"""
    table = parameter(state_dict, "char_emb.weight", None, None)
    weight = parameter(state_dict, "char_cnn.weight", None, table.shape[1], None)
    bias = parameter(state_dict, "char_cnn.bias", len(weight))
    found = F.conv1d(F.embedding(ids.flatten(0, 1), table, padding_idx=0).transpose(1, 2), weight, bias)
    return found.max(2).values.unflatten(0, ids.shape[:2])


def _recurrent(state_dict: State, name: str, x: Tensor, lengths: Tensor | None) -> Tensor:
    """A bidirectional GRU with learned first states. x [B, T, in] -> [B, T, 2 * hidden], padding 0

    lengths int64 [B]; None: padding is read like words.
    """
    first = parameter(state_dict, f"{name}.init_hidden.0", 2, 1, None)
    weights = [
        weight
        for end in ("_l0", "_l0_reverse")
        for weight in gru_weights(state_dict, f"{name}.rnns.0", end, x.shape[2], first.shape[2])
    ]
    first = first.expand(-1, len(x), -1).contiguous()
    settings = (True, 1, 0.0, False, True)  # biases, one layer, no dropout, not in training, both directions
    if lengths is None:
        return torch.gru(x, first, weights, *settings, True)[0]
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states = torch.gru(packed.data, packed.batch_sizes, first, weights, *settings)[0]
    packed = PackedSequence(states, *packed[1:])
    return pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]


def _attention(state_dict: State, name: str, a: Tensor, b: Tensor, real: Tensor, square: bool) -> Tensor:
    """Each unit of a with what it finds in b, and with what b finds in a. [B, S, D], [B, T, D] -> [B, S, 4 * D]

    real bool [B, T]: units of b that are no padding.
    """
    scores = linear(state_dict, f"{name}.input_linear", a, bias=False)
    scores = scores + linear(state_dict, f"{name}.memory_linear", b, bias=False).transpose(1, 2)
    scores = scores + (a * parameter(state_dict, f"{name}.dot_scale", a.shape[2])) @ b.transpose(1, 2)
    if square:
        scores = (scores * real[:, None]).square()
        to_b, to_a = _share(scores), _share(scores.max(2).values)
    else:
        scores = scores + _hidden(real, scores)[:, None]
        to_b, to_a = scores.softmax(2), scores.max(2).values.softmax(1)
    found, heard = to_b @ b, to_a[:, None] @ a
    return torch.cat([a, found, a * found, heard * found], 2)


def _pointed(state_dict: State, x: Tensor, question: Tensor, real: Tensor, asked: Tensor) -> Tensor:
    """The pointer network: the question's summary points at the first word, and with what it saw at the last one.

    x [B, T, D], question [B, J, at least D] of which the last D count -> logits [B, 2, T]
    """
    question = question[:, :, -x.shape[2] :]
    weight = linear(state_dict, "summarizer.net.1", question).tanh()
    weight = linear(state_dict, "summarizer.net.3", weight, bias=False) + _hidden(asked, x)[..., None]
    summary = (weight.softmax(1) * question).sum(1)

    def point(state: Tensor) -> Tensor:
        given = torch.cat([state[:, None].expand(-1, x.shape[1], -1), x], 2)
        score = linear(state_dict, "pointer_net.pointer.net.0", given, bias=False).tanh()
        return (
            linear(state_dict, "pointer_net.pointer.net.2", score, bias=False) + _hidden(real, x)[..., None]
        )

    first = point(summary)
    seen = (first.softmax(1) * x).sum(1)
    last = point(gru_cell(state_dict, "pointer_net.grucell", seen, summary))
    return torch.cat([first, last], 2).transpose(1, 2)


def _share(x: Tensor) -> Tensor:
    """x divided by its sum over the last dimension."""
    return x / (x.sum(-1, keepdim=True) + EPSILON)


def _hidden(real: Tensor, like: Tensor) -> Tensor:
    """What to add to scores: 0 for real units, PADDING for the others. [B, T] of like's dtype."""
    return (~real).to(like.dtype) * PADDING
