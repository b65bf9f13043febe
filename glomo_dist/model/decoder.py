"""The context decoder: from the features of a sampled unit, predict the units after it (paper section 2.3)."""

from __future__ import annotations

import torch
from glomo_kernels import decoder_loss
from torch import Tensor, nn

from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.convolutions import LockedDropout
from glomo_dist.model.feature_predictor import gather_units

IGNORED = -100  # target of a unit beyond the end of its sequence


class Decoder(nn.Module):
    """A GRU that starts from f^L_t in every layer and reads (0, e_{t+1}, ..., e_{t+D-1})."""

    def __init__(self, config: GlomoConfig) -> None:
        super().__init__()
        self.steps = config.decoder_steps
        dropout = config.dropout if config.decoder_layers > 1 else 0.0
        self.rnn = nn.GRU(
            config.width, config.width, config.decoder_layers, batch_first=True, dropout=dropout
        )
        self.dropout = LockedDropout(config.dropout)

    def forward(
        self,
        states: Tensor,
        embeddings: Tensor,
        tokens: Tensor,
        positions: Tensor,
        ends: Tensor,
        softmax_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of x_{t+1} .. x_{t+D} and how many of them there are.

        states [B, S, d] (f^L at the sampled units), embeddings [B, T, d], tokens [B, T] int64,
        positions [B, S] int64, ends [B, S] or [B, 1] int64: the first unit behind the document of each sampled unit,
        softmax_weight [V, d] (the embedding: tied).
        """
        hidden, targets = self.read(states, embeddings, tokens, positions, ends)
        loss = decoder_loss(hidden, softmax_weight, targets, ignore_index=IGNORED, reduction="sum")
        return loss, (targets != IGNORED).sum()

    def read(
        self, states: Tensor, embeddings: Tensor, tokens: Tensor, positions: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The GRU's outputs [B*S*D, d] of the D steps from each sampled unit, and the unit that each is to predict
        [B*S*D], IGNORED behind the end."""
        B, S, d = states.shape
        states = self.dropout(states)
        ahead = positions[:, :, None] + torch.arange(1, self.steps + 1, device=positions.device)  # [B, S, D]
        real = ahead < ends[:, :, None]
        ahead = ahead.clamp(max=tokens.shape[1] - 1).flatten(1)  # [B, S*D]
        targets = tokens.gather(1, ahead).view(B, S, self.steps).masked_fill(~real, IGNORED)
        following = gather_units(embeddings, ahead).view(B, S, self.steps, d)[:, :, :-1]
        given = torch.cat([following.new_zeros(B, S, 1, d), following], dim=2).flatten(0, 1)  # [B*S, D, d]
        first = states.reshape(1, B * S, d).expand(self.rnn.num_layers, -1, -1).contiguous()
        hidden, _ = self.rnn(given, first)
        return hidden.reshape(-1, d), targets.flatten()
