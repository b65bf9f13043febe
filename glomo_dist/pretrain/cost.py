"""What a run costs, from its settings alone: parameters, arithmetic and memory, by formulas."""

from __future__ import annotations

from dataclasses import dataclass

from glomo_dist.pretrain.settings.config import PretrainConfig, accumulation
from glomo_dist.pretrain.settings.deepspeed_settings import bucket

BACKWARD = 3  # forward + backward is three times the arithmetic of forward: each product has two gradients


@dataclass(frozen=True)
class Cost:
    """embedding: parameters of it (tied to the softmax).  others: all other parameters.
    flops_per_unit: forward and backward.  units_per_step: units read by all ranks, at most.
    """

    embedding: int
    others: int
    flops_per_unit: float
    units_per_step: int

    @property
    def parameters(self) -> int:
        return self.embedding + self.others


def cost(config: PretrainConfig) -> Cost:
    """The parameters are counted (on the meta device, without memory); the arithmetic is estimated.

    Per unit and direction, 2 per multiply-add: the convolutions and linear maps of both CNNs and of every graph
    layer; per layer and head 2·d_g·T/2 for the scores and 2·(d/K)·T/2 for mixing, as only j < i counts. At the
    sampled positions only: the queries, scores, mixing and composition of the last layer, D steps of the decoder's
    GRU, and the softmax over all units. `edge_floor` and `empty_row_penalty` look at all T scores of a row, the one
    without a gradient, the other at the sampled positions of each layer. With activation checkpointing the parts of
    steps/activations.py are computed twice.
    """
    import torch  # seconds, which --help need not wait for

    from glomo_dist.model import Glomo

    m = config.model
    with torch.device("meta"):
        model = Glomo(m)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total = sum(sizes.values())
    embedding = m.vocab_size * m.width

    def numbers(part: str) -> int:
        return sum(n for name, n in sizes.items() if part in name)

    units = config.row_units
    sampled = config.positions_per_sequence / units  # above 1 too: a unit may come twice
    rows = m.layers - 1 + sampled  # of the graphs: the last layer's are those of the sampled positions
    convolutions: float = numbers("_cnn.") * (m.layers if m.coupled else 1)
    unseen = (1 - sampled) * numbers(f".query_maps.{m.layers - 1}.")
    maps = numbers(".graph_predictor.") - numbers("_cnn.") - unseen
    # one cell for all layers
    composition = numbers(".feature_predictor.") + (rows - 1) * numbers(".cell.")
    # j < i halves the pairs, two directions double them
    pairs = rows * m.heads * (m.graph_width + m.width // m.heads) * units
    all_scores = 2 * m.heads * m.graph_width * units
    floor = all_scores * rows if m.edge_floor else 0
    hinge = all_scores * m.layers * sampled if m.empty_row_penalty else 0
    if m.norm == "batch" and m.image is None and config.windows != "packed":
        convolutions *= 1 + (m.kernel_size - 1) / units  # the tail, see CausalConv1d
    decoder = sampled * m.decoder_steps * numbers(".decoder.")
    softmax = 2 * sampled * m.decoder_steps * embedding
    done = BACKWARD * (convolutions + maps + composition + pairs + hinge + decoder + softmax) + floor
    if config.activation_checkpointing:
        done += composition + pairs + floor + decoder
        done += convolutions if m.norm == "layer" else 0
    return Cost(embedding, total - embedding, 2 * done, config.global_batch * units)


def state_bytes(config: PretrainConfig, parameters: int, ranks: int) -> dict[int, dict[str, float]]:
    """Bytes per rank that each ZeRO stage that the precision allows holds: parameters, gradients, optimizer states,
    the bucket of gradients.

    Stage 1 shares out the optimizer states, 2 the gradients too, 3 the parameters too. With ZeRO the optimizer
    updates float32 copies of its share, whatever the precision, and gradients are collected in a bucket.
    """
    bf16 = config.precision == "bf16"
    numbers = 2 if bf16 else 4
    moments = 2 if config.optimizer == "adamw" else (1 if config.momentum else 0)
    collected = bucket(config, parameters) * numbers
    return {
        stage: {
            "parameters": parameters * numbers / (ranks if stage >= 3 else 1),
            "gradients": parameters * numbers / (ranks if stage >= 2 else 1),
            "optimizer": parameters * 4 * (moments + (stage >= 1)) / (ranks if stage >= 1 else 1),
            "bucket": collected if stage >= 1 else 0,
        }
        for stage in ((1, 2, 3) if bf16 else (0, 1, 2, 3))
    }


def activation_bytes(config: PretrainConfig, ranks: int) -> float:
    """Bytes per rank of one backward pass, roughly: features of every layer and direction, what the decoder's GRU
    keeps of every step (as PyTorch does without cuDNN), and what the loss holds.

    `decoder_loss` has some of the sampled units' logits at a time, and keeps the gradient of the words' weights in
    float32, of both directions. The graphs do not count: `affinity_mix` keeps none. With activation checkpointing
    (steps/activations.py) the inputs and outputs of its parts are kept, among them every layer's scores, and one
    part's inside at a time.
    """
    from glomo_kernels.decoder_loss.triton_impl import CHUNK_BYTES  # and with it PyTorch

    m = config.model
    micro, _ = accumulation(config, ranks)
    width = 2 if config.precision == "bf16" else 4
    convolutions = 3 * (m.key_layers + m.query_layers) * m.width
    scores, layer = 2 * m.heads * m.graph_width, 10 * m.width
    per_unit = 2 * (convolutions + m.layers * (scores + layer))
    if config.activation_checkpointing:
        kept = convolutions if m.norm == "batch" else 3 * m.width
        per_unit = 2 * (kept + m.layers * (scores + m.width)) + max(convolutions, layer)
    sampled = config.positions_per_sequence * m.decoder_steps
    decoder = 2 * sampled * (2 + 8 * m.decoder_layers) * m.width
    logits = min(sampled * micro * m.vocab_size * width, CHUNK_BYTES)
    features = config.row_units * per_unit
    return float(micro * (features + decoder) * width + logits + 2 * m.vocab_size * m.width * 4)
