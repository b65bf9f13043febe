"""A small predictor on real words, and a store made from it, for the tests of this folder."""

import numpy as np
import torch

from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.graphs.export import export_graphs
from glomo_dist.graphs.index import StoreMeta
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo

TEXTS = [
    "a relation between two units of a text",
    "the graph predictor never looks at units that come later in the sequence",
    "words",
    "",
    "each row of a graph is normalised over the units before it , and a row without edges stays zero",
    "it 's a long way",
]
META = StoreMeta(
    task="sample",
    task_version=3,
    data="d" * 16,
    model="m" * 16,
    tokenizer="t" * 16,
    max_units={"text": 50},
    unknown_words=None,
    predictor="trained",
    random_seed=None,
)


def predictor(layers=2, heads=2, seed=5):
    tokenizer = WordTokenizer.train(TEXTS, size=100)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Glomo(
            GlomoConfig(vocab_size=tokenizer.vocab_size, width=8, heads=heads, layers=layers, sparsity="relu")
        )
        torch.nn.init.normal_(model.embedding.weight)
    return model.eval(), tokenizer


def encoded(tokenizer):
    ids = [tokenizer.encode(text) for text in TEXTS]
    return {"train": ids, "test": ids[::-1]}


def export(folder, keep=3, chunk_units=20, **options):
    model, tokenizer = predictor()
    splits = encoded(tokenizer)
    options.setdefault("meta", META)
    export_graphs(model, splits, folder, keep=keep, chunk_units=chunk_units, batch_units=40, **options)
    return model, splits


def dense_of(model, ids, direction, keep):
    """The graphs of one text, computed alone: float [layers * heads, n, n]."""
    n = len(ids)
    if n == 0:
        return np.zeros((model.config.layers * model.config.heads, 0, 0), np.float32)
    with torch.inference_mode():
        pair = model.graphs(torch.from_numpy(ids.astype(np.int64))[None], torch.tensor([n]), keep=keep)
    return pair[direction].dense()[0].numpy()
