"""A reader that chooses among options: where the article speaks of question and option, and how well they agree.

After the attentive reader that RACE reports as a baseline (Lai et al. 2017, section 5.1; Chen et al. 2016), with the
option in the query.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glomo_dist.transfer.readers.models import Reader, ReaderSizes
from glomo_dist.transfer.readers.sequences import AttentivePool, Sequences, sequence_layer


class ChoiceReader(Reader):
    """Article, question and k options per example -> logits [B, k]. One network reads all three."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        width = 2 * sizes.hidden
        self.states = sequence_layer(sizes.cell, sizes.width, sizes.hidden)
        self.pool = AttentivePool(width, sizes.hidden)
        self.query = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(sizes.dropout)
        self.agree = nn.Linear(4 * width, sizes.hidden)
        self.score = nn.Linear(sizes.hidden, 1)

    def forward(self, article: Sequences, question: Sequences, options: Sequences) -> Tensor:
        """Units float [B, T, width], [B, J, width] and, the k options of an example next to each other,
        [B · k, O, width] -> logits float [B, k]. An empty text counts as one zero unit."""
        read = self.states(article).transpose(0, 1)  # [B, T, width]
        asked = self.pool(self.states(question), question.real)  # [B, width]
        # [B, k, width]
        offered = self.pool(self.states(options), options.real).view(len(asked), -1, asked.shape[1])
        asked = asked[:, None].expand_as(offered)
        query = self.query(self.dropout(torch.cat([asked, offered], -1)))
        weight = (query @ read.transpose(1, 2)).masked_fill(~article.real[:, None], float("-inf")).softmax(-1)
        found = weight @ read  # [B, k, width]
        together = self.dropout(torch.cat([found, offered, found * offered, found * asked], -1))
        return self.score(torch.tanh(self.agree(together))).squeeze(-1)
