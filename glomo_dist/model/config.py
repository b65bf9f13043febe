"""What a GLoMo model is: sizes, kind of sparsity, composition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from glomo_dist.runtime.config import LARGEST, check_fields, check_least, check_positive
from glomo_dist.runtime.errors import ConfigError

# With these no parameter has more bytes than 64 bits count: torch has no better word for one that has.
LARGEST_VOCABULARY, WIDEST, WIDEST_KERNEL, DEEPEST = 1 << 32, 1 << 20, 1 << 10, 1 << 10
MARGIN = 0.1  # by how much edge_floor and empty_row_penalty want a score above its threshold

Sparsity = Literal["threshold", "bias", "relu", "square", "topk", "softmax"]


@dataclass(frozen=True)
class GlomoConfig:
    """Sizes and choices of one model; the paper's text model is `recipes.ancestor_text_paper`.

    Attributes:
        vocab_size: Number of different units; 0: taken from the data, before the model is built.
        width: d, of the embeddings and features.
        heads: K, the graphs of each layer; each mixes its own slice of the features, so width is a multiple of it.
        head_width: d_g, of one head's queries and keys (None: width // 2).
        layers: L, of graphs.
        key_layers: Convolutions in the CNN of the keys.
        query_layers: Convolutions in the CNN of the queries.
        kernel_size: Units that a convolution sees, the last of them the unit itself; for images how wide it is, an
            odd number k: of pixels in each of the k // 2 rows above and, up to the pixel itself, in its own.
        sparsity: How scores become edge weights, relu(score - threshold)^2 divided by the row's sum:
            threshold (learned per query), bias (one learned threshold per layer), relu (no threshold), square (no
            ReLU either), topk (the k largest squares, see topk_rate), softmax (of the scores divided by sqrt(d_g), as
            in attention, in the place of the squares; with score "scaled" that is twice).
        topk_rate: For sparsity topk: k = floor(topk_rate * sqrt(T)) edges of a row are kept, at least 1; T: units of
            the sequence.
        coupled: An ablation of the paper: the graph of a layer comes from the features of the layer below, through
            the same CNNs (with key_layers and query_layers 0 through the linear maps alone, as in self-attention),
            instead of from a network of its own.
        score: Of query and key: their product; divided by sqrt(d_g); or of both at unit length, so between -1 and 1.
        distance: Whether scores may depend on how far apart two units are: none (the authors': only through what the
            CNNs see around each), rotary (queries and keys turned by their positions, Su et al. 2021; the score then
            depends on the difference alone) or rotary_2d, for images (half of the features turned by the pixel's row,
            half by its column).
        threshold_init: Every threshold when training begins (None: small and random, for bias 1e-4); below 0 the
            first graphs are dense.
        edge_floor: A threshold never exceeds the score of the row's so many largest less 0.1, so that a row with
            enough units before it has at least so many edges (0: it may have none).
        empty_row_penalty: Weight of a hinge on the largest score of the sampled rows, max(0, 0.1 - score), added to
            the training loss per predicted unit: the gradient that a row without edges otherwise lacks. The score is
            that above the learned threshold, before edge_floor lowers it.
        norm: Inside the CNNs; layer is causal and the same on any number of ranks, batch is the authors'.
        composition: How mixed features join the unit's own: through a cell that all layers share, or added to them.
        value: For composition residual, what is mixed: a linear map of the features (per layer) or the features
            themselves.
        decoder_layers: GRU layers of the decoder.
        decoder_steps: D, the units that are predicted after each sampled one.
        dropout: Share of what enters the CNNs, of what the decoder starts from, and of what goes from one of its
            layers to the next, that is set to 0 in training.
        scale_grad_by_freq: Divide the input embedding's gradient by the unit's count in the batch (the authors do).
        image: Height and width when the units are the pixels of an image in raster order (None: text, and in
            pretraining what the shards hold).
    """

    vocab_size: int = 0
    width: int = 64
    heads: int = 4
    head_width: int | None = None
    layers: int = 2
    key_layers: int = 2
    query_layers: int = 2
    kernel_size: int = 3
    sparsity: Sparsity = "threshold"
    topk_rate: float = 1.0
    coupled: bool = False
    score: Literal["dot", "scaled", "cosine"] = "dot"
    distance: Literal["none", "rotary", "rotary_2d"] = "none"
    threshold_init: float | None = None
    edge_floor: int = 0
    empty_row_penalty: float = 0.0
    norm: Literal["layer", "batch"] = "layer"
    composition: Literal["gru", "lstm", "residual"] = "gru"
    value: Literal["linear", "features"] = "linear"
    decoder_layers: int = 2
    decoder_steps: int = 3
    dropout: float = 0.0
    scale_grad_by_freq: bool = False
    image: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_least(self, "model.", 1, "width", "heads", "head_width", most=WIDEST)
        check_least(self, "model.", 1, "kernel_size", most=WIDEST_KERNEL)
        check_least(self, "model.", 1, "layers", "decoder_layers", "decoder_steps", most=DEEPEST)
        check_least(self, "model.", 0, "key_layers", "query_layers", most=DEEPEST)
        check_least(self, "model.", 0, "vocab_size", most=LARGEST_VOCABULARY)
        if self.width % self.heads:
            raise ConfigError(
                f"model.width {self.width} must be a multiple of model.heads {self.heads}: each head mixes its "
                "own slice of the features."
            )
        if self.graph_width < 1:
            raise ConfigError(
                f"model.width {self.width} leaves no feature for queries and keys (width // 2). Set width 2 or "
                "more, or head_width."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout must be in [0, 1), got {self.dropout}.")
        if self.sparsity not in ("threshold", "bias"):
            for name, unset in (("threshold_init", None), ("edge_floor", 0)):
                if (value := getattr(self, name)) != unset:
                    raise ConfigError(
                        f"model.{name} {value} is for sparsity threshold or bias, got {self.sparsity!r}."
                    )
        if self.threshold_init is not None and not abs(self.threshold_init) <= LARGEST:
            raise ConfigError(
                f"model.threshold_init must be a finite number, got {self.threshold_init}; {LARGEST:g} at "
                "most."
            )
        if self.edge_floor < 0 or not 0 <= self.empty_row_penalty < math.inf:
            raise ConfigError(
                "model.edge_floor and model.empty_row_penalty must not be negative, and finite, got "
                f"{self.edge_floor} and {self.empty_row_penalty}."
            )
        if self.empty_row_penalty and self.sparsity not in ("threshold", "bias", "relu"):
            raise ConfigError(
                f"model.empty_row_penalty {self.empty_row_penalty}: with sparsity {self.sparsity!r} no row is empty."
            )
        pairs = {"none": 1, "rotary": 2, "rotary_2d": 4}[self.distance]
        if self.graph_width % pairs:
            raise ConfigError(
                f"model.distance {self.distance} turns features in pairs: model.head_width {self.graph_width} must "
                f"be a multiple of {pairs}."
            )
        check_positive(self, "model.", "topk_rate")
        if self.image is not None:
            if min(self.image) < 1:
                raise ConfigError(f"model.image must be (height, width) in pixels, got {self.image}.")
            if self.kernel_size % 2 == 0:
                raise ConfigError(f"model.kernel_size must be odd for images, got {self.kernel_size}.")

    @property
    def graph_width(self) -> int:
        """d_g, the width of one head's queries and keys."""
        return self.width // 2 if self.head_width is None else self.head_width
