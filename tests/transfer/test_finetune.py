import dataclasses

import numpy as np
import pytest
import torch
from transfer_samples import job, planted_store, with_any_mixture, write_sst2, write_vectors

from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.graphs.store import GraphStore
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.features.inputs import bucketed, encode
from glomo_dist.transfer.finetune import build, run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.models import TaskModel
from glomo_dist.transfer.registry import get_task
from glomo_dist.transfer.training import Training


def curve(result):
    return [(e.epoch, e.train_loss, e.dev) for e in result.curve]


def test_a_graph_that_knows_the_answer_wins(sample):
    """The whole path from graph to accuracy: export, store, batches, mixture, fusion, training, test."""
    arms = {
        arm: run(job(sample["source"], sample["vectors"], arm=arm, graphs=sample["planted"], epochs=4))
        for arm in ("none", "uniform", "planted")
    }
    assert arms["planted"].test > 0.95
    assert arms["none"].test < 0.7  # the features do not tell the label
    assert arms["uniform"].test < 0.7


@pytest.mark.parametrize("fusion", ["concat", "gate"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_it_wins_with_every_head(sample, fusion, conditioned):
    fields = {"fusion": fusion, "conditioned": conditioned, "mixtures": 2, "reader": "lstm", "epochs": 5}
    result = run(job(sample["source"], sample["vectors"], arm="planted", graphs=sample["planted"], **fields))
    assert result.test > 0.9
    assert [m.direction for m in result.mixtures] == ["forward", "forward", "backward", "backward"]
    for mixed in result.mixtures:
        assert len(mixed.weights) == len(result.components) == 2
        assert sum(mixed.weights) == pytest.approx(1, abs=1e-5)


def test_arms_differ_only_by_their_graphs(sample):
    """A store without a single edge gives, bit for bit, the run without graphs."""
    assert GraphStore.open(sample["empty"]).splits["train.text"].edges == 0
    none = run(job(sample["source"], sample["vectors"], arm="none", graphs=sample["planted"]))
    empty = run(job(sample["source"], sample["vectors"], arm="empty", graphs=sample["empty"]))
    uniform = run(job(sample["source"], sample["vectors"], arm="uniform", graphs=sample["planted"]))
    assert curve(empty) == curve(none)
    assert empty.test == none.test
    assert curve(uniform) != curve(none)
    assert none.parameters == empty.parameters == uniform.parameters
    assert none.examples == empty.examples == {"train": 200, "dev": 80, "test": 80}


def test_all_arms_start_from_the_same_parameters(sample):
    task = get_task("sst2")
    data = task.load(sample["source"], None)
    info = GraphStore.open(sample["planted"]).info
    states = []
    for arm in ("none", "uniform", "window2", "planted"):
        torch.manual_seed(3)
        a_job = job(sample["source"], arm=arm, graphs=sample["planted"], conditioned=True, fusion="gate")
        inputs = encode(data, "words", "learned", task.limits(None), 12)
        states.append(build(a_job, task, inputs, 2, (info.layers, info.heads)).state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_deterministic_and_free_of_global_state(sample):
    a_job = job(sample["source"], sample["vectors"], arm="planted", graphs=sample["planted"], train_size=100)
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = run(a_job)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(99)
    again = run(a_job)
    assert (curve(first), first.test, first.mixtures) == (curve(again), again.test, again.mixtures)
    other = run(dataclasses.replace(a_job, seed=1))
    assert curve(other) != curve(first)


def test_a_seed_has_its_own_initial_parameters(sample):
    """Their loss, whatever the order of the examples."""
    fields = {"arm": "none", "epochs": 1, "batch_size": 200, "dropout": 0.0}
    losses = [run(job(sample["source"], seed=seed, **fields)).curve[0].train_loss for seed in (0, 1)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_test_metric_belongs_to_the_best_dev_epoch(sample):
    """Stopping at the best epoch gives the same test number as running on past it."""
    # The features do not tell the label, so dev goes up and down; of a few seeds one peaks before the end.
    fields = {"arm": "none", "patience": 8, "lr": 2e-2, "hidden": 24}
    runs = (run(job(sample["source"], sample["vectors"], epochs=8, seed=s, **fields)) for s in range(6))
    long = next(result for result in runs if 1 < result.best_epoch < 8)
    assert long.dev == max(e.dev for e in long.curve) == long.curve[long.best_epoch - 1].dev
    assert all(e.dev < long.dev for e in long.curve[: long.best_epoch - 1])
    short = run(job(sample["source"], sample["vectors"], epochs=long.best_epoch, seed=long.seed, **fields))
    assert short.test == long.test


def test_the_mixture_learns_at_its_own_rate(sample):
    """A larger factor moves the mixture further, and changes nothing where there is no graph to mix."""
    fields = {"graphs": sample["planted"], "epochs": 1, "conditioned": True}
    moved, without = [], []
    for factor in (0.01, 1.0, 10.0):
        result = run(
            job(sample["source"], sample["vectors"], arm="planted", mixture_lr_factor=factor, **fields)
        )
        moved.append(sum(abs(m.scale - 1) for m in result.mixtures))
        without.append(curve(run(job(sample["source"], arm="none", mixture_lr_factor=factor, **fields))))
    assert moved[0] < 0.01 < moved[1] < moved[2]
    assert without[0] == without[1] == without[2]


def test_a_mixture_that_starts_at_scale_zero_starts_as_no_graph(sample):
    """Kept there, it is *no graph* to the end; let loose, it takes some of the graph in."""
    fields = {"epochs": 2, "clip": 1e9}
    without = curve(run(job(sample["source"], sample["vectors"], arm="none", **fields)))
    fields |= {"arm": "planted", "graphs": sample["planted"], "mixture_scale": 0.0}
    kept = run(job(sample["source"], sample["vectors"], mixture_lr_factor=1e-12, **fields))
    assert curve(kept) == [pytest.approx(e) for e in without]
    free = run(job(sample["source"], sample["vectors"], **fields))
    assert all(abs(m.scale) > 0.01 for m in free.mixtures)


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [0.01] * 4), ("linear", [0.01, 0.0075, 0.005, 0.0025])]
)
def test_the_learning_rate_falls_to_zero_at_the_end_of_the_last_epoch(sample, monkeypatch, schedule, rates):
    """Two epochs of two batches; the mixture's own rate falls with it, what draws the weights to 0 stays."""
    seen, step = [], torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        seen.append([group["lr"] for group in self.param_groups])
        assert [group["weight_decay"] for group in self.param_groups] == [0.125, 0.125]
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    fields = {"train_size": 40, "batch_size": 32, "epochs": 2, "lr": 0.01, "schedule": schedule}
    run(job(sample["source"], arm="uniform", weight_decay=0.125, **fields))
    assert seen == [pytest.approx([rate, 10 * rate]) for rate in rates]


def test_every_epoch_has_another_order_and_all_arms_the_same(sample, monkeypatch):
    seen = []

    def recorded(*args):
        batches = bucketed(*args)
        seen.append(np.concatenate(batches).tolist())
        return batches

    monkeypatch.setattr("glomo_dist.transfer.training.bucketed", recorded)
    for arm, seed in (("none", 0), ("uniform", 0), ("none", 1)):
        run(job(sample["source"], arm=arm, seed=seed, epochs=2))
    none, uniform, other = seen[:2], seen[2:4], seen[4:]
    assert none == uniform
    assert len(set(map(tuple, none + other))) == 4


def test_a_step_takes_the_gradient_of_its_batch_and_clips_it(sample, monkeypatch):
    """At a rate of next to nothing: the same gradient in every epoch, the same loss whatever the batches."""
    norms, step = [], torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        gradients = [
            p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    fields = {"arm": "uniform", "train_size": 40, "epochs": 2, "lr": 1e-12, "dropout": 0.0}
    whole = run(job(sample["source"], batch_size=40, clip=1e9, **fields))
    assert norms == pytest.approx([norms[0]] * 2)
    limit = norms[0] / 100
    norms.clear()
    parts = run(job(sample["source"], batch_size=32, clip=limit, **fields))
    assert norms == pytest.approx([limit] * 4, rel=1e-4)  # PyTorch adds 1e-6 to the norm
    losses = [[epoch.train_loss for epoch in result.curve] for result in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1])


def test_dropout_is_on_in_every_epoch_and_off_in_what_is_measured(sample, monkeypatch):
    """Two batches an epoch, one of dev, one of test."""
    seen, forward = [], TaskModel.forward

    def recorded(self, columns):
        seen.append({module.training for module in self.modules()})
        return forward(self, columns)

    monkeypatch.setattr(TaskModel, "forward", recorded)
    run(job(sample["source"], arm="uniform", train_size=40, batch_size=32, epochs=2))
    assert seen == [{True}, {True}, {False}] * 2 + [{False}]


@pytest.mark.parametrize("conditioned", [False, True])
def test_mixtures_of_a_result_are_told_apart(sample, monkeypatch, conditioned):
    """Each has its own scale and weights; those that are conditioned as the mean over the words of test."""
    made = with_any_mixture(monkeypatch)
    fields = {"graphs": sample["planted"], "mixtures": 2, "conditioned": conditioned, "epochs": 1, "lr": 1e-9}
    found = run(job(sample["source"], sample["vectors"], arm="planted", **fields)).mixtures
    assert [m.direction for m in found] == ["forward", "forward", "backward", "backward"]
    mixture, task = made[0].mixture, get_task("sst2")
    assert [m.scale for m in found] == pytest.approx(mixture.scale.flatten().tolist())
    inputs = encode(task.load(sample["source"], None), "words", sample["vectors"], task.limits(None), 12)
    column = inputs.splits["test"].columns["text"]
    words = [inputs.features("test.text", column.batch(np.array([i])))[0] for i in range(80)]
    weights = mixture.weights(torch.cat(words)[None])
    expected = weights.mean((2, 3)) if conditioned else weights
    torch.testing.assert_close(torch.tensor([m.weights for m in found]), expected.flatten(0, 1).detach())


def test_learned_vectors_are_among_the_parameters(sample):
    """Those of the words of train, of unknown words and of padding; vectors of a file are not."""
    sizes = [run(job(sample["source"], f, epochs=1)).parameters for f in ("learned:8", sample["vectors"])]
    train = get_task("sst2").load(sample["source"], None).splits["train"].columns["text"].values
    assert sizes[0] - sizes[1] == 8 * (len({word for text in train for word in text}) + 2)


def test_early_stopping(sample):
    result = run(job(sample["source"], sample["vectors"], arm="none", epochs=30, patience=1, lr=1e-6))
    assert len(result.curve) == result.best_epoch + 1 < 30


def test_truncation_and_caps_reach_graphs_and_text(sample, tmp_path):
    store = planted_store(tmp_path / "short", sample["source"], max_units=5, max_examples=60)
    fields = {"arm": "planted", "graphs": store, "max_units": 5, "max_examples": 60}
    result = run(job(sample["source"], sample["vectors"], **fields, epochs=1))
    assert result.examples == {"train": 60, "dev": 60, "test": 60}
    with pytest.raises(GraphStoreError, match=r"max_units is \{'text': 5\}, the job's is \{'text': 64\}"):
        run(job(sample["source"], sample["vectors"], **{**fields, "max_units": None}))
    with pytest.raises(GraphStoreError, match="data fingerprint"):
        run(job(sample["source"], sample["vectors"], **{**fields, "max_examples": None}))


def test_train_size_is_drawn_by_the_seed(sample, monkeypatch):
    """The same examples in all arms and epochs, others of another seed."""
    seen, columns = [], Training._columns

    def recorded(self, split, chosen):
        seen[-1].update(chosen.tolist() if split == "train" else ())
        return columns(self, split, chosen)

    monkeypatch.setattr(Training, "_columns", recorded)
    for arm, seed in (("none", 0), ("uniform", 0), ("none", 1)):
        seen.append(set())
        result = run(job(sample["source"], arm=arm, train_size=40, seed=seed, epochs=2))
        assert result.examples["train"] == len(seen[-1]) == 40
    assert seen[0] == seen[1] != seen[2]
    job(sample["source"], train_size=200).require_examples(200)
    with pytest.raises(ConfigError, match="train_size 201, but task 'sst2' has 200"):
        run(job(sample["source"], arm="none", train_size=201))


def test_empty_texts_are_legal(tmp_path, monkeypatch):
    """Where the task allows them, as RACE does in its options; this one is made to."""
    monkeypatch.setattr("glomo_dist.transfer.datasets.splits._require_words", lambda *_: None)
    source = write_sst2(tmp_path / "data", sizes=(20, 4, 4))
    train = tmp_path / "data" / "train.tsv"
    train.write_text(train.read_text() + "\t1\n\t0\n")
    result = run(job(source, planted_vectors(tmp_path), arm="uniform", epochs=1, batch_size=2))
    assert result.examples["train"] == 22
    store = planted_store(tmp_path / "store", source)
    run(job(source, planted_vectors(tmp_path), arm="planted", graphs=store, epochs=1, batch_size=2))


def planted_vectors(folder):
    return write_vectors(folder / "vectors.npz")


def test_pixels_learn(tmp_path):
    fields = {
        "arm": "uniform",
        "features": "pixels",
        "train_size": 400,
        "epochs": 8,
        "lr": 5e-3,
        "hidden": 16,
    }
    result = run(FinetuneJob("digits", **fields))
    assert result.test > 0.7
    counts = np.bincount(get_task("digits").load(None, None).splits["test"].labels)
    assert result.majority == counts.max() / counts.sum() < 0.2
    assert counts.min() < counts.max()
    assert len(result.classes) == 10
