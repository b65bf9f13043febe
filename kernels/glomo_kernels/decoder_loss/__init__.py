"""decoder_loss: cross-entropy of a linear map to many words, without all the logits."""

from typing import Any

import torch
from torch import Tensor

from glomo_kernels import checks
from glomo_kernels.dispatch import run
from glomo_kernels.registration import operator
from glomo_kernels.scores import compute_dtype

OP = "decoder_loss"


def decoder_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of softmax(weight @ hidden_n) against target_n, summed or averaged over n.

    hidden  [N, d]  float16 | bfloat16 | float32 | float64
    weight  [V, d]  dtype of hidden (often the embedding, tied)
    target  int64 [N], in 0..V-1, or ignore_index: no loss and no gradient
    reduction  "sum" or "mean" over the targets that are not ignored (of none: NaN with gradients of zero, as
              PyTorch gives)
    ->      scalar, float32 (float64 for float64 input)

    The gradients are computed with the loss, chunk by chunk over n, so that at most one chunk of logits
    exists, and kept in the dtype of the loss until the backward pass. Second derivatives are refused. Logits have the
    range of hidden's dtype on a GPU: in float16 one above 65,504 is infinite, and the loss NaN.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"{OP}: reduction must be 'sum' or 'mean', got {reduction!r}")
    ignore_index = checks.check_whole(OP, "ignore_index", ignore_index, "a whole number of 64 bits")
    checks.check_tensors(OP, hidden=hidden, weight=weight)
    hidden, weight = checks.alike(hidden, weight)
    if hidden.ndim != 2 or hidden.dtype not in checks.FLOATING:
        raise ValueError(
            f"{OP}: hidden must be [N, d] {checks.FLOATING_NAMES}, got {checks.shape(hidden)} {hidden.dtype}"
        )
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] < 1:
        raise ValueError(
            f"{OP}: weight must be (V, {hidden.shape[1]}) with V >= 1 to go with hidden "
            f"{checks.shape(hidden)}, got {checks.shape(weight)}"
        )
    checks.same_kind(OP, "hidden", hidden, "weight", weight)
    checks.check_integers(OP, "target", target, ((hidden.shape[0],),), hidden.device)
    if checks.readable(target):
        wrong = (target != ignore_index) & ((target < 0) | (target >= weight.shape[0]))
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"{OP}: target must lie in 0..{weight.shape[0] - 1} or be ignore_index={ignore_index}, "
                f"got {int(target[at])} at position {at}"
            )
    grads = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = _forward(hidden, weight, target, ignore_index, grads)[0]
    if reduction == "sum":
        return loss
    count = (target != ignore_index).sum()
    # Without targets the value is NaN, but the gradients are zero, as PyTorch's are.
    return torch.where(count > 0, loss / count.clamp(min=1), torch.nan)


@operator("decoder_loss")
def _forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, its gradient for hidden, for weight); both gradients empty unless asked for.

    The gradients stay in the loss's dtype until they are multiplied by the gradient of the loss: those of a sum that
    is divided afterwards can be too large for float16, those of a mean that is scaled up too small.
    """
    arguments = (hidden, weight, target, ignore_index, grads)
    result: tuple[Tensor, Tensor, Tensor] = run(OP, "forward", hidden.device, arguments, *arguments)
    return result


@_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(hidden)
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape if grads else (0,), dtype=dtype),
        weight.new_empty(weight.shape if grads else (0,), dtype=dtype),
    )


@operator("decoder_loss_backward")
def _backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, dhidden: Tensor, dweight: Tensor
) -> tuple[Tensor, Tensor]:
    """The two gradients of the forward pass times the gradient of the loss.

    hidden is an argument for its dtype; both are so that a second derivative meets the refusal below.
    """
    result: tuple[Tensor, Tensor] = run(
        OP, "backward", hidden.device, (hidden, weight, None, 0, True), grad, dhidden, dweight, hidden.dtype
    )
    return result


@_backward.register_fake
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, dhidden: Tensor, dweight: Tensor
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1], output[2])


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, dhidden, dweight = ctx.saved_tensors
    if dweight.shape != weight.shape:
        raise RuntimeError(
            f"{OP}: backward through a graph that was exported for inputs without gradients; export it with a "
            "hidden or weight that requires one"
        )
    if _used_once(grad):
        # the gradient of the weight is the largest tensor of many a model: no second float32 one beside it
        return dhidden.mul_(grad).to(hidden.dtype), dweight.mul_(grad).to(weight.dtype), None, None, None
    dhidden, dweight = _backward(grad, hidden, weight, dhidden, dweight)
    return dhidden, dweight, None, None, None


def _used_once(grad: Tensor) -> bool:
    """Whether the backward pass that runs frees what it uses, so that saved tensors may be overwritten."""
    if torch.compiler.is_compiling():  # by compiled autograd, which cannot tell
        return False
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    # Of a batch of gradients (is_grads_batched) each needs them.
    plain = type(grad) is Tensor and "Batched" not in str(torch._C._dispatch_keys(grad))
    return plain and not torch.is_grad_enabled() and kept is not None and not kept()


_forward.register_autograd(_autograd, setup_context=_setup)
_backward.refuse_derivative(OP)
