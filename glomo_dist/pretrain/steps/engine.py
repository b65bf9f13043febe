"""DeepSpeed around the model: its optimizer, its engine, one update."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from typing import Any

import torch
from torch import nn

from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.settings.config import PretrainConfig
from glomo_dist.pretrain.settings.deepspeed_settings import deepspeed_settings
from glomo_dist.runtime import collector
from glomo_dist.runtime.errors import ConfigError, GlomoError, describe
from glomo_dist.runtime.processes import environment


def build_optimizer(model: nn.Module, config: PretrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW or SGD; matrices decay, vectors (biases, norms, thresholds) do not.

    Each group carries `lr_share`, its learning rate relative to the schedule's.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            share = config.graph_lr_share if "graph_predictor" in name else 1.0
            # a threshold is w·q + c: of the map to it the weight is a vector, too, though it has two dimensions
            decay = config.weight_decay if p.ndim > 1 and "thresholds" not in name else 0.0
            groups.setdefault((share, decay), []).append(p)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_share": share, "lr": config.lr * share}
        for (share, decay), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum)
    # on a CPU one pass over the state in the place of some ten; on a GPU the fused kernel wants the number of the
    # step there, and no restored state has been tried
    fused = True if device.type == "cpu" else None
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=fused)


def build_engine(model: nn.Module, config: PretrainConfig, ranks: Ranks) -> Any:
    """A DeepSpeedEngine that trains `model` (built with equal values on every rank).

    Raises ConfigError, on all ranks, where DeepSpeed cannot do what the file `config.deepspeed` asks for.
    """
    import deepspeed  # after group.join has chosen the accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # the loop itself reports skipped steps
    _import_muon_uncompiled()
    optimizer = build_optimizer(model, config, ranks.device)
    settings = deepspeed_settings(config, sum(p.numel() for p in model.parameters()), ranks.world)
    error: ConfigError | None = None
    cause: Exception | None = None
    try:
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
    except Exception as e:  # DeepSpeed has no one type for settings that it refuses; all ranks have the same
        # memory, connections: of one rank, which dies. But "not implemented", a RuntimeError too, is of settings.
        of_rank = isinstance(e, (GlomoError, OSError, MemoryError, RuntimeError))
        if config.deepspeed is None or (of_rank and not isinstance(e, NotImplementedError)):
            raise
        cause = e
        error = ConfigError(
            f"DeepSpeed cannot begin with the settings in {config.deepspeed}: {describe(e).rstrip('.')}. Mend or "
            "remove them."
        )
    try:
        ranks.agree_on(error)
    except GlomoError as agreed:
        raise agreed from cause
    return engine


def _import_muon_uncompiled() -> None:
    """DeepSpeed imports its Muon, which is never ours, to name the optimizers it knows, and compiles its functions
    there: that would load PyTorch's compiler, a second and a half of every rank's start and 44 MB."""
    with collector.importing(), environment(TORCHDYNAMO_DISABLE="1"), contextlib.suppress(ImportError):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def set_learning_rate(engine: Any, rate: float) -> None:
    """rate: the schedule's, of which each group of parameters has its share."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_share"]


def optimizer_step(engine: Any, clip: float | None) -> tuple[bool, float]:
    """Apply the accumulated gradients, unless one of them is not finite: (applied, global gradient norm).

    All ranks decide alike. ZeRO 1-3 check while they reduce, and skip; without ZeRO nothing checks, so we do, and
    clip: the gradients there are averaged over ranks already, and a parameter without one is left alone.
    """
    if engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            for p in engine.module.parameters():
                p.grad = None
        elif clip is not None:
            torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), clip, norm)
        engine.step()
        return math.isfinite(norm), float(norm)
    before = engine.skipped_steps
    engine.step()
    reduced = float(engine.get_global_grad_norm())
    return engine.skipped_steps == before and math.isfinite(reduced), reduced
