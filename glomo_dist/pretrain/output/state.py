"""Weights and optimizer of an engine as named pieces, on any number of ranks and in every ZeRO stage.

A rank holds some pieces: `count` numbers of a parameter, from number `start` of its flattened form on, as float32
master weights and as what the optimizer keeps per number (moments). A checkpoint is every rank's pieces in one
safetensors file per rank; names are PARAMETER/STATE/START. So nothing in it depends on how it was divided: another
number of ranks reads the ranges that it needs. No pickle is involved.

DeepSpeed's own conversion (ds_to_universal) knows Adam alone, and its ZeRO-3 loader gives every parameter group the
settings of the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.runtime.errors import CheckpointError, describe

WEIGHTS, BUFFER = "fp32", "buffer"
_ADVICE = "The checkpoint is of another model."


class Piece(NamedTuple):
    """`numel` numbers of parameter `name`, from number `start` on; they are at `at` of the flat tensor `flat`."""

    name: str
    start: int
    numel: int
    flat: Tensor
    at: int

    def of(self, tensor: Tensor) -> Tensor:
        """The piece's numbers in `tensor`, which is laid out as `flat` is; a view."""
        return tensor.detach().view(-1).narrow(0, self.at, self.numel)


def pieces(engine: Any) -> Iterator[Piece]:
    """What this rank holds; without ZeRO that is everything, on every rank."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    for name, p in engine.module.named_parameters():
        if stage == 0:
            yield Piece(name, 0, p.numel(), p, 0)
        elif stage == 3:
            group, at, size = zero.grad_position[zero.get_param_id(p)]
            start = size * engine.global_rank  # every rank has `size` numbers, the last ones may be padding
            if start < p.ds_numel:
                flat = zero.fp32_partitioned_groups_flat[group]
                yield Piece(name, start, min(size, p.ds_numel - start), flat, at)
        elif p._hp_mapping is not None:
            mapping = p._hp_mapping
            flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
            inside, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Piece(name, inside.start, inside.numel, flat, there.start)


def _optimizer_states(engine: Any) -> Any:
    """Flat tensor -> what torch's optimizer keeps for it."""
    return (
        engine.optimizer.state if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer.state
    )


def snapshot(engine: Any) -> dict[str, Tensor]:
    """A copy in CPU memory of this rank's share of the whole state; without ZeRO rank 0 has it all.

    Buffers (running statistics) differ between ranks: each writes its own, numbered by rank.
    """
    copied, states = {}, _optimizer_states(engine)
    alike = engine.zero_optimization_stage() == 0 and engine.global_rank > 0
    for piece in () if alike else pieces(engine):
        copied[f"{piece.name}/{WEIGHTS}/{piece.start}"] = _copy(piece.of(piece.flat))
        for key, value in states.get(piece.flat, {}).items():
            if torch.is_tensor(value):  # momentum_buffer is None without momentum
                whole = value.shape == piece.flat.shape
                copied[f"{piece.name}/{key}/{piece.start}"] = _copy(piece.of(value) if whole else value)
    for name, buffer in _buffers(engine):
        copied[f"{name}/{BUFFER}/{engine.global_rank}"] = _copy(buffer)
    return copied


def _buffers(engine: Any) -> Iterator[tuple[str, Tensor]]:
    kept = engine.module.state_dict().keys()
    return ((name, buffer) for name, buffer in engine.module.named_buffers() if name in kept)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


class CheckpointReader:
    """The pieces in the files of a checkpoint, whoever wrote them. A context manager."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._open = files, ExitStack()
        self._found: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)

    def __enter__(self) -> CheckpointReader:
        for path in self._files:
            try:
                file = self._open.enter_context(safe_open(path, "pt"))
            except SafetensorError as e:
                raise CheckpointError(f"{path} is not a readable safetensors file: {e}.") from None
            except OSError as e:
                raise CheckpointError(f"{path} cannot be read: {describe(e)}.") from None
            for key in file.keys():  # noqa: SIM118 (no mapping)
                name, state, start = key.rsplit("/", 2)
                shape = file.get_slice(key).get_shape()
                self._found[name, state].append((int(start), shape[0] if shape else 0, file, key))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def states(self, name: str) -> list[str]:
        """What there is of parameter `name`, besides its weights."""
        return sorted(state for known, state in self._found if known == name and state != WEIGHTS)

    def scalar(self, name: str, state: str) -> Tensor | None:
        """A state that belongs to the whole parameter (the optimizer's step), repeated with each piece; or None."""
        _, _, file, key = self._found[name, state][0]
        return None if file.get_slice(key).get_shape() else file.get_tensor(key)

    def buffer(self, name: str, rank: int, world: int) -> Tensor:
        """Rank `rank`'s own, if there are as many ranks as wrote it; else the mean (of counters: the first)."""
        found = sorted(self._found[name, BUFFER], key=lambda piece: piece[0])
        if not found:
            raise CheckpointError(f"{self._where()}: there is no {BUFFER} of {name}. {_ADVICE}")
        values = [file.get_tensor(key) for _, _, file, key in found]
        if len(values) == world:
            return values[rank]
        return torch.stack(values).mean(0) if values[0].is_floating_point() else values[0]

    def range(self, name: str, state: str, start: int, count: int) -> Tensor:
        """[count]: numbers `start` .. `start` + `count` - 1 of the flattened parameter, from one file or several."""
        parts, reached = [], start
        for first, size, file, key in sorted(self._found[name, state], key=lambda piece: piece[0]):
            if first <= reached < min(first + size, start + count):
                end = min(first + size, start + count)
                parts.append(file.get_slice(key)[reached - first : end - first])
                reached = end
        if reached != start + count:
            raise CheckpointError(
                f"{self._where()}: {state} of {name} ends at number {reached}, {start + count} are needed. "
                + _ADVICE
            )
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _where(self) -> str:
        return str(self._files[0].parent) if self._files else "checkpoint"


@torch.no_grad()
def restore(engine: Any, files: Sequence[Path], ranks: Ranks) -> None:
    """Put the state in `files`, those of all ranks that wrote it, into a fresh engine; every rank calls this, and
    raises the CheckpointError of any, say of a file that it alone cannot read."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()  # parameters that stay whole are divided, too
    ranks.on_each(lambda: _read_into(engine, files))
    # from the float32 master weights to the parameters that the model computes with
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        for group in range(len(engine.optimizer.fp16_groups)):
            engine.optimizer._reassign_or_swap_out_partitioned_parameters(group)
        engine.optimizer.checkpoint_event_epilogue()


def _read_into(engine: Any, files: Sequence[Path]) -> None:
    states = _optimizer_states(engine)
    with CheckpointReader(files) as reader:
        for piece in pieces(engine):
            weights = reader.range(piece.name, WEIGHTS, piece.start, piece.numel)
            piece.of(piece.flat).copy_(weights)
            for state in reader.states(piece.name):
                if (scalar := reader.scalar(piece.name, state)) is not None:
                    states[piece.flat][state] = scalar
                    continue
                there = states[piece.flat].get(state)
                if not torch.is_tensor(there):
                    there = states[piece.flat][state] = torch.zeros_like(piece.flat, requires_grad=False)
                piece.of(there).copy_(reader.range(piece.name, state, piece.start, piece.numel))
        for name, buffer in _buffers(engine):
            buffer.copy_(reader.buffer(name, engine.global_rank, engine.world_size))


def model_state(
    files: Sequence[Path], like: dict[str, Tensor], parameters: Collection[str]
) -> dict[str, Tensor]:
    """The model's state dict, put together from the pieces; parameters float32, buffers the mean over ranks.

    like: its names and shapes (on any device).  parameters: which of them are parameters.
    """
    with CheckpointReader(files) as reader:
        return {
            name: reader.range(name, WEIGHTS, 0, wanted.numel()).view(wanted.shape)
            if name in parameters
            else reader.buffer(name, 0, 0)
            for name, wanted in like.items()
        }
