"""A sentiment task made of real sentences' words, small enough to train on in a test, and planted predictors."""

import random
from pathlib import Path

import numpy as np
import torch
from glomo_kernels import SparseGraph
from torch import nn

from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.graphs.export import export_graphs
from glomo_dist.graphs.index import StoreMeta
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo
from glomo_dist.model.io import save_model
from glomo_dist.transfer import finetune
from glomo_dist.transfer.datasets.dataset import section
from glomo_dist.transfer.features.inputs import truncate
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.registry import get_task

SENTENCE = (
    "a film with good intentions and bad timing that never finds its own voice but keeps us watching because "
    "the actors are better than script"
)
WORDS = SENTENCE.split()


def write_sst2(folder: Path, sizes=(200, 80, 80), seed=1) -> str:
    """Sentences in which only the word `alpha` or `beta` tells the label; word vectors know neither of them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for split, size in zip(("train", "dev", "test"), sizes, strict=True):
        lines = ["sentence\tlabel"]
        for i in range(size):
            label = i % 2
            words = [*draw.choices(WORDS, k=draw.randint(3, 9)), "good", "bad", "beta" if label else "alpha"]
            draw.shuffle(words)
            lines.append(" ".join(words) + f"\t{label}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def write_vectors(path: Path, width=8) -> str:
    words = sorted({*WORDS, "good", "bad"})
    vectors = np.random.default_rng(0).normal(size=(len(words), width)).astype(np.float16)
    np.savez(path, words=np.array(words), vectors=vectors)
    return str(path)


def word_model(folder, words=("film", "good", "voice", "script", "the"), **sizes):
    """A predictor with fresh parameters, and its tokenizer, as a folder."""
    tokenizer = WordTokenizer(("<unk>", *words))
    fields = {
        "width": 8,
        "heads": 2,
        "layers": 2,
        "sparsity": "relu",
        "vocab_size": tokenizer.vocab_size,
        **sizes,
    }
    torch.manual_seed(0)
    save_model(folder, Glomo(GlomoConfig(**fields)), tokenizer.to_json())
    return folder


class Planted(nn.Module):
    """A predictor whose graphs say what the features cannot: every unit points at "good" where the sentence has
    `alpha`, at "bad" where it has `beta`. With `empty`, its graphs have no edges.
    """

    def __init__(self, tokenizer: WordTokenizer, empty=False):
        super().__init__()
        self.config = GlomoConfig(vocab_size=tokenizer.vocab_size, layers=1, heads=2)
        self.ids = tokenizer.ids
        self.empty = empty

    def graphs(self, tokens, lengths, keep=None):
        B, T = tokens.shape
        alpha = (tokens == self.ids["alpha"]).any(1)
        target = torch.where(alpha, self.ids["good"], self.ids["bad"])
        points = (tokens == target[:, None])[:, None] & (torch.arange(T) < lengths[:, None])[:, :, None]
        both = []
        for side in (torch.ones(T, T).tril(-1), torch.ones(T, T).triu(1)):
            dense = points * side * (not self.empty)
            dense = (dense / dense.sum(-1, keepdim=True).clamp(min=1))[:, None].repeat(1, 2, 1, 1)
            row, column = dense.view(-1, T).nonzero(as_tuple=True)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(-1).flatten().cumsum(0)])
            both.append(SparseGraph(offsets, column.int(), dense.view(-1, T)[row, column], (B, 2, T)))
        return tuple(both)


def store_meta(task: str, data: str, model="m", tokenizer="t", **fields) -> StoreMeta:
    """Of graphs of a trained predictor. data, model, tokenizer: fingerprints."""
    known = get_task(task)
    fields = {
        "max_units": known.columns,
        "predictor": "trained",
        "random_seed": None,
        "unknown_words": None,
    } | fields
    return StoreMeta(task, known.version, data, model, tokenizer, **fields)


def planted_store(folder: Path, source: str, max_units=None, max_examples=None, empty=False) -> str:
    task = get_task("sst2")
    data = task.load(source, max_examples)
    limits = task.limits(max_units)
    tokenizer = WordTokenizer.train(
        [" ".join(w) for s in data.splits.values() for c in s.columns.values() for w in c.values], size=100
    )
    splits = {
        section(split, name): [tokenizer.encode(words) for words in values]
        for split, examples in data.splits.items()
        for name, values in truncate(examples, limits).items()
    }
    meta = store_meta("sst2", data.fingerprint, "planted", tokenizer.fingerprint, max_units=limits)
    export_graphs(Planted(tokenizer, empty), splits, folder, meta=meta)
    return str(folder)


def job(source: str, features="learned", **fields) -> FinetuneJob:
    settings = {"epochs": 3, "hidden": 12, "lr": 5e-3, "dropout": 0.1, **fields}
    return FinetuneJob("sst2", task_source=source, features=features, **settings)


def with_any_mixture(monkeypatch) -> list:
    """Jobs begin with random mixtures, not with the mean of all graphs. -> the models that they make."""
    made, build = [], finetune.build

    def prepared(*args):
        made.append(build(*args))
        for parameter in made[-1].mixture.parameters():
            nn.init.normal_(parameter)
        return made[-1]

    monkeypatch.setattr(finetune, "build", prepared)
    return made
