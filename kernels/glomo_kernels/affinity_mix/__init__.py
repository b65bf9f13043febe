"""affinity_mix: scores -> sparse weights -> normalise -> weighted mean of the values."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from glomo_kernels import checks, dispatch
from glomo_kernels.affinity_mix import softmax
from glomo_kernels.dispatch import run
from glomo_kernels.registration import operator, storable
from glomo_kernels.scores import compute_dtype, kept_size, live_shape
from glomo_kernels.spans import make_spans

OP = "affinity_mix"


@storable
class AffinityStats(NamedTuple):
    """Per query row, without gradients, [B, H, Tq] each.

    row_sum  float32 (float64 for float64 input): sum of the unnormalised weights, 0 for an empty row;
             with kind "softmax" the sum of exp(scores)
    edges    int32: number of positive weights
    entropy  of the normalised weights, in nats; 0 for an empty row
    live     bool [B, H, ceil(Tq/64), ceil(T/64)]: tiles of 64 x 64 scores with a positive weight in them; work
             on the others is skipped
    """

    row_sum: Tensor
    edges: Tensor
    entropy: Tensor
    live: Tensor


def affinity_mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | float | None = None,
    *,
    kind: str = "relu",
    lengths: Tensor | None = None,
    causal: bool = True,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
    topk: int | Tensor | None = None,
    return_stats: bool = False,
) -> Any:
    """mixed_i = sum_j G_ij v_j with G_ij = a_ij / (sum_j a_ij + 1e-16), over the keys j that row i may see.

    q      [B, H, Tq, Dg]   float16 | bfloat16 | float32 | float64
    k      [B, H, T, Dg]    dtype of q
    v      [B, H, T, Dv]    dtype of q
    theta  [B, H, Tq]       any float dtype, only for kind "relu"; a scalar is one for all; None is 0
    kind   "relu"     a = max(0, q_i . k_j - theta_i)^2
           "square"   a = (q_i . k_j)^2
           "topk"     a = (q_i . k_j)^2 where it is among the `topk` largest of the row (ties: the lowest j)
           "softmax"  softmax(q_i . k_j / sqrt(Dg)), for comparison; by PyTorch's own attention, unless
                      statistics are wanted or a backend is forced
    lengths    int64 [B]: units j >= lengths[b] are padding, never seen, and their rows are 0. None: all real
    causal     True: j < i only. False: all real j, i included
    segments   int64 [B, T]: for rows packed with several documents, the number of each unit's document, equal
               numbers side by side. Units see their own document only. None: one document per row
    positions  int64 [B, Tq] or [Tq]: the unit index i of each query row. None: 0..T-1, and Tq == T
    topk       int or int64 [B], at least 1
    ->     [B, H, Tq, Dv] dtype of q; with return_stats (mixed, AffinityStats). A row without weight is zero
           and gives no gradient. Scores, a, its sum and the division are float32 (float64 for float64 input).

    Padding must hold finite numbers: it is multiplied by zero. A NaN in q_i, theta_i or in a key that row i sees
    makes row i NaN, and no other; through PyTorch's own attention a NaN in a key may be lost, or reach every row of
    its sample and head. A v_j that is not finite reaches the rows that give it weight and may reach others
    of its sample and head: where many weights of neighbouring rows and keys are positive (and always, in bfloat16 by
    AMX), the rest are multiplied by zero. The same holds for gradients. Second derivatives, forward-mode derivatives
    and vmap are refused (through PyTorch's own attention they are what PyTorch makes of them).
    """
    q, k, v = checks.alike(q, k, v)
    theta = checks.check_scores(OP, q, k, theta, kind)
    checks.check_tensors(OP, v=v)
    batch, _, rows, _ = q.shape
    columns = k.shape[2]
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        expected = (*checks.shape(k)[:3], "Dv")
        raise ValueError(f"{OP}: v must be {expected} to go with k {checks.shape(k)}, got {checks.shape(v)}")
    checks.same_kind(OP, "q", q, "v", v)
    checks.check_bool(OP, "causal", causal)
    checks.check_bool(OP, "return_stats", return_stats)
    checks.check_lengths(OP, lengths, batch, columns, q.device)
    positions = checks.check_positions(OP, positions, batch, rows, columns, q.device)
    counts = checks.check_topk(OP, topk, kind, batch, q.device)
    checks.check_segments(OP, segments, batch, columns, q.device)
    spans = make_spans(
        batch, columns, q.device, lengths=lengths, causal=causal, positions=positions, segments=segments
    )
    if kind == "softmax" and not return_stats and dispatch.forced(OP) is None:
        plain = positions is None and segments is None
        order = "causal" if causal else "all" if lengths is None else None
        return softmax.mix(q, k, v, spans, order=order if plain else None)
    backward = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, theta))
    mixed, norm, edges, entropy, live, _ = _forward(
        q, k, v, theta, spans, counts, kind, return_stats, _keep(q, k, v) if backward else "nothing"
    )
    if not return_stats:
        return mixed
    row_sum = norm.exp() if kind == "softmax" else norm
    entropy = entropy.detach().clamp(min=0)  # a share rounded to more than 1 has one below 0
    # not live.bool(): torch.export cannot prove what it asks of the strides
    return mixed, AffinityStats(row_sum.detach(), edges, entropy, live != 0)


def _keep(q: Tensor, k: Tensor, v: Tensor) -> str:
    """What is worth its memory for the backward pass, one of KEEP: on a CPU, where arithmetic is dear, the scores if
    they take no more than q, k, v, and a bit for each of them if that takes no more than 3/8 of these."""
    if q.device.type != "cpu" or torch.compiler.is_exporting():  # a choice would bind the sizes that may vary
        return "nothing"
    # not nbytes: torch.compile has none of sizes that vary
    size = sum(x.numel() * x.itemsize for x in (q, k, v))
    itemsize = compute_dtype(q).itemsize
    if kept_size(q, k, "roots") * itemsize <= size:
        return "roots"
    return "edges" if 8 * kept_size(q, k, "edges") * itemsize <= 3 * size else "nothing"


@operator("affinity_mix")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    stats: bool,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(mixed, norm [B, H, Tq], edges, entropy, live uint8 [B, H, tiles of rows, tiles of keys], kept).

    norm is the row sum, or the logsumexp for softmax. live is 0 only for tiles without a positive weight, and
    with stats 1 only for the others. kept holds what the backend's backward pass would have to compute again, at most
    what `keep` says, in an order of its own: see `kept_size`.
    """
    arguments = (q, k, v, theta, spans, topk, kind, stats, keep)
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = run(
        OP, "forward", q.device, arguments, *arguments
    )
    return result


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    stats: bool,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = compute_dtype(q)
    rows = q.shape[:3]
    counted = rows if stats else (0,)
    return (
        q.new_empty(*rows, v.shape[3]),
        q.new_empty(rows, dtype=dtype),
        q.new_empty(counted, dtype=torch.int32),
        q.new_empty(counted, dtype=dtype),
        q.new_empty(live_shape(q, k), dtype=torch.uint8),
        q.new_empty(kept_size(q, k, keep), dtype=dtype),
    )


@operator("affinity_mix_backward")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    mixed: Tensor,
    norm: Tensor,
    live: Tensor,
    kept: Tensor,
    kind: str,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and theta (an empty tensor without theta)."""
    result: tuple[Tensor, Tensor, Tensor, Tensor] = run(
        OP,
        "backward",
        q.device,
        (q, k, v, theta, spans, topk, kind, False, keep),
        *(grad, q, k, v, theta, spans, topk, mixed, norm, live, kept, kind, keep),
    )
    return result


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    mixed: Tensor,
    norm: Tensor,
    live: Tensor,
    kept: Tensor,
    kind: str,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtheta = q.new_empty(0) if theta is None else theta.new_empty(theta.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dtheta


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, theta, spans, topk, kind, _, keep = inputs
    ctx.save_for_backward(q, k, v, theta, spans, topk, output[0], output[1], output[4], output[5])
    ctx.kind, ctx.keep, ctx.has_theta = kind, keep, theta is not None


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv, dtheta = _backward(grad, *ctx.saved_tensors, ctx.kind, ctx.keep)
    return dq, dk, dv, dtheta if ctx.has_theta else None, None, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup)
_backward.refuse_derivative(OP)
