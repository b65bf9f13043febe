"""The loop over steps, with stand-ins for a step, its data and its checkpoints: what it asks of them, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretrain_samples import PLAIN

from glomo_dist.pretrain import PretrainConfig, loop
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.pretrain.settings.schedule import Plateau
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.pretrain.steps.loop_state import LoopState
from glomo_dist.pretrain.steps.step import StepResult
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import GlomoError, Interrupted

CPU = torch.device("cpu")


def agree_on(error: GlomoError | None) -> None:
    if error is not None:
        raise error


class Looped:
    """A run of the loop on one rank: the rows that hooks were told, the steps after which it saved, and of every
    step the random seed and the learning rates of the two groups of parameters."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, config: PretrainConfig, rank: int = 0, start: int = 0
    ):
        self.rows: list[dict[str, Any]] = []
        self.saved: list[int] = []
        self.seeds: list[int] = []
        self.rates: list[list[float]] = []
        self.skipped: set[int] = set()
        self.errors: dict[int, GlomoError] = {}  # of the hook, by step
        self.stop_after = 0
        self.stopping = SimpleNamespace(asked="")
        self.saver = SimpleNamespace(save=self._save, wait=lambda: None, error=None)
        self.state = LoopState(start)
        groups = [{"lr_share": 1.0}, {"lr_share": 0.5}]
        self.engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups))
        monkeypatch.setattr(loop, "train_step", self._train)
        ranks = SimpleNamespace(
            rank=rank, world=2, first=rank == 0, agree_on=agree_on, gather=lambda value: [value], on_each=None
        )
        job = SimpleNamespace(config=config, out=Path("run"), valid_index=None)
        at = SimpleNamespace(shard="shard-0", key="7")
        parts: Any = (
            job, ranks, self.engine, SimpleNamespace(keys=lambda batch: [[at]]), SimpleNamespace(take=self._take),
            self.state, [SimpleNamespace(step=self._hook)], self.saver, Clock(CPU), self.stopping,
        )  # fmt: skip
        self.run: Callable[[], None] = loop._Loop(*parts).run

    def _take(self, asked: bool, error: GlomoError | None) -> object:
        agree_on(error)
        return None if asked else object()

    def _train(self, engine: Any, *_: Any, with_stats: bool) -> StepResult:
        self.seeds.append(torch.initial_seed())
        self.rates.append([group["lr"] for group in engine.optimizer.param_groups])
        return StepResult(1.0, 4, 8, 1.0, self.state.step + 1 not in self.skipped, {}, [])

    def _hook(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.stopping.asked = "SIGTERM" if row["step"] == self.stop_after else ""
        if row["step"] in self.errors:
            raise self.errors[row["step"]]

    def _save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        assert state["step"] == step
        self.saved.append(step)


def test_every_so_many_steps_and_the_last_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Looped(monkeypatch, dataclasses.replace(PLAIN, steps=7, checkpoint_every=3))
    run.run()
    assert run.saved == [3, 6, 7] and [row["step"] for row in run.rows] == list(range(1, 8))


def test_the_first_step_has_the_first_learning_rate_and_each_group_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Looped(monkeypatch, dataclasses.replace(PLAIN, steps=4, warmup_steps=4, lr=1.0))
    run.run()
    assert [row["lr"] for row in run.rows] == [0.25, 0.5, 0.75, 1.0]
    assert run.rates == [[rate, rate / 2] for rate in (0.25, 0.5, 0.75, 1.0)]


def test_dropout_is_drawn_anew_in_every_step_of_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the same in a run that is resumed."""

    def seeds(seed: int, rank: int, start: int = 0) -> list[int]:
        run = Looped(monkeypatch, dataclasses.replace(PLAIN, steps=5, seed=seed), rank, start)
        run.run()
        return run.seeds

    found = [*seeds(0, 0), *seeds(0, 1), *seeds(1, 0)]
    assert len(set(found)) == 15 and seeds(0, 1, start=2) == found[7:10]


def test_skipped_steps_are_logged_whatever_the_interval_and_counted_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(PLAIN, steps=9, log_every=9, max_bad_steps=3)
    run = Looped(monkeypatch, config)
    run.skipped = {2, 3, 5, 6}
    run.run()
    assert [row["step"] for row in run.rows if row["logged"]] == [2, 3, 5, 6, 9]
    assert run.rows[1]["samples"] == ["shard-0/7"] and "samples" not in run.rows[8]
    assert (run.state.skipped, run.state.bad_steps) == (4, 0)
    run = Looped(monkeypatch, config)
    run.skipped = {1, 3, 4, 5}
    with pytest.raises(GlomoError, match=r"3 steps in a row \(the last is 5\)"):
        run.run()
    run = Looped(monkeypatch, dataclasses.replace(config, steps=2))  # without any update
    run.skipped = {1, 2}
    with pytest.raises(GlomoError, match="2 steps in a row"):
        run.run()


def test_the_samples_of_a_skipped_step() -> None:
    """Those of the passes whose loss was not finite, on any rank, each once; of all, where no loss tells."""
    shares = [[["a", "b"], ["c"]], [["d"], ["a", "e"]]]  # of each rank the documents of its rows
    stream: Any = SimpleNamespace(
        keys=lambda rows: [[SimpleNamespace(shard="s", key=key) for key in row] for row in rows]
    )

    def suspects(*bad: list[int]) -> list[str]:
        def gather(mine: tuple[Any, Any]) -> list[tuple[Any, Any]]:
            of_other = [[f"s/{key}" for key in row] for row in shares[1]]
            return [mine, (of_other, [of_other[i] for i in bad[1]])]

        result = StepResult(1.0, 1, 1, 1.0, False, {}, bad[0])
        return loop._suspects(stream, shares[0], result, SimpleNamespace(gather=gather))  # type: ignore[arg-type]

    assert suspects([], [1]) == ["s/a", "s/e"] and suspects([0], [1]) == ["s/a", "s/b", "s/e"]
    assert suspects([], []) == ["s/a", "s/b", "s/c", "s/d", "s/e"]


@pytest.mark.parametrize("step", [2, 4])
def test_what_a_hook_cannot_write_ends_the_run(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next step, or after the last; so does a checkpoint that cannot be written."""
    run = Looped(monkeypatch, dataclasses.replace(PLAIN, steps=4))
    run.errors[step] = GlomoError("the log is full")
    with pytest.raises(GlomoError, match="the log is full"):
        run.run()
    assert len(run.rows) == step
    run = Looped(monkeypatch, dataclasses.replace(PLAIN, steps=4))
    run.saver.error = GlomoError("the checkpoints are full")
    with pytest.raises(GlomoError, match="the checkpoints are full"):
        run.run()
    assert not run.rows


@pytest.mark.parametrize(("after", "saved"), [(2, [2]), (3, [2, 3])])
def test_a_run_that_is_asked_to_stop_saves_what_is_not_yet_saved(
    after: int, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Looped(monkeypatch, dataclasses.replace(PLAIN, checkpoint_every=2))
    run.stop_after = after
    with pytest.raises(Interrupted, match=f"saved at step {after}"):
        run.run()
    assert run.saved == saved


class Stop(Exception):
    """Ends `train` where the loop would begin."""


def test_the_settings_reach_the_parts_of_a_run(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    def part(name: str) -> Callable[..., Any]:
        def make(*arguments: Any, **named: Any) -> Any:
            made[name] = (arguments, named)
            if name == "_Loop":
                raise Stop
            return SimpleNamespace(close=lambda: None)

        return make

    for name in ("build_engine", "Stream", "Feed", "Saver", "exporter", "_Loop"):
        monkeypatch.setattr(loop, name, part(name))
    state = LoopState(3, 1, Plateau(2.5, 1, 1), skipped=2)
    manifest = {"state": state.to_json(), "ranks": 2}
    monkeypatch.setattr(loop.checkpoint, "find_newest", lambda folder: (folder / "step-000003", manifest))
    monkeypatch.setattr(loop.checkpoint, "load", part("load"))
    opened: list[int] = []
    monkeypatch.setattr(loop, "open_hooks", lambda job, start, stack: opened.append(start) or [])
    ranks: Any = SimpleNamespace(
        rank=1,
        world=2,
        first=False,
        from_first=lambda function: function(),
        on_each=lambda function: function(),
    )
    laps: list[str] = []
    claim, clock = SimpleNamespace(check=object()), SimpleNamespace(lap=laps.append)

    def begun(seed: int, again: bool) -> dict[str, torch.Tensor]:
        reading = dataclasses.replace(PLAIN.reading, max_bad_shards=4)
        config = dataclasses.replace(
            PLAIN,
            seed=seed,
            keep_checkpoints=5,
            reading=reading,
            windows="random",
            activation_checkpointing=again,
        )
        job = resolve(config, tiny_shards, tmp_path)
        with pytest.raises(Stop):
            loop.train(job, ranks, claim, clock, SimpleNamespace())  # type: ignore[arg-type]
        stream = made["Stream"][1]
        assert (stream["seed"], stream["windows"], stream["window"]) == (seed, "random", 24)
        assert (stream["rank"], stream["world"], stream["reading"]) == (1, 2, reading)
        assert made["Saver"][0][2] == 5 and made["Saver"][0][4] is claim.check
        assert made["Feed"][0][2] == 3 and made["Feed"][0][4] == 4 and opened.pop() == 3
        assert made["_Loop"][0][5] == state and made["load"][0][2] is manifest
        extra = made["exporter"][0][2]
        assert extra["data"] == job.index.fingerprint and extra["pretrain"] == to_dict(job.config)
        model = made["build_engine"][0][0]
        assert hasattr(model.forwards.decoder.read, "__wrapped__") == again
        return model.state_dict()

    first, same, other = begun(7, False), begun(7, True), begun(8, False)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    made["Saver"][1]["beat"]()
    assert laps == ["checkpoint"]


@pytest.mark.parametrize(("windows", "cut"), [("fixed", "fixed"), ("random", "fixed"), ("packed", "packed")])
def test_a_validation_has_the_same_batches_in_every_run(
    windows: Any, cut: str, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(PLAIN, valid_every=1, valid_batches=3, windows=windows, seed=5)
    made: list[dict[str, Any]] = []

    def stream(index: Any, **named: Any) -> Any:
        made.append(named)
        return SimpleNamespace(iterate=lambda: (number for number in range(9)))

    monkeypatch.setattr(loop, "Stream", stream)
    ranks: Any = SimpleNamespace(rank=1, world=2, on_each=lambda function: function())
    job: Any = SimpleNamespace(config=config, valid_index=object())
    assert loop._valid_batches(job, ranks) == [0, 1, 2]
    assert made[0]["windows"] == cut and made[0]["seed"] == 0
    job.valid_index = None
    assert loop._valid_batches(job, ranks) == []


def test_the_newest_model_is_published(tmp_path: Path) -> None:
    for step in (9, 12):
        model = tmp_path / "checkpoints" / f"step-{step:06d}" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text(str(step))
    loop._publish(tmp_path)
    assert (tmp_path / "model" / "config.json").read_text() == "12"


def test_a_run_that_moved_to_another_number_of_ranks_says_so() -> None:
    said = [loop._moved({"ranks": 2}, SimpleNamespace(world=world)) for world in (2, 1)]  # type: ignore[arg-type]
    assert said == ["", "; begun on 2 ranks, its state is now shared by 1"]
