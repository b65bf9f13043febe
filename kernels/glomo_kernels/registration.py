"""How the ops become operators of torch (namespace `glomo`).

torch.library.custom_op would do the same, but its first call imports torch._dynamo (1.5 s on a quiet machine,
again in every process), and each later call checks what our ops hold by construction: fresh outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._C import _AutoDispatchBelowAutograd
from torch._C import _functorch as functorch
from torch._C._dynamo import eval_frame
from torch.autograd import forward_ad
from torch.utils import _pytree

Tuple = TypeVar("Tuple", bound=type[tuple[Any, ...]])

_LIBRARY: Any = torch.library.Library("glomo", "DEF")  # type: ignore[no-untyped-call]


def _unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that the dispatcher or autograd calls, with all that it calls, runs as it is: torch.compile would
    look into it where it gives up on the code around the op, and take a backend to pieces."""
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return function


class Operator:
    """A function of tensors, registered for all devices as `glomo::<name>`.

    The function returns new tensors and changes none. Its annotations give the schema.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        schema = torch.library.infer_schema(function, mutates_args=(), op_name=name)
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, _unseen(function), "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.glomo, name).default
        torch.library.register_vmap(f"glomo::{name}", self._refuse_vmap, lib=_LIBRARY)

    def __call__(self, *arguments: Any) -> Any:
        return self.overload(*arguments)

    def _refuse_transforms(self) -> None:
        """torch would ask its user for a method of a class that he never saw."""
        transform = functorch.peek_interpreter_stack()
        if transform is not None and transform.key() == functorch.TransformType.Grad:
            raise RuntimeError(
                f"{self.name}: torch.func's grad, vjp and jacrev are not implemented; use backward or "
                "torch.autograd.grad"
            )

    def _refuse_tangents(self, arguments: tuple[Any, ...]) -> None:
        """Where no input requires a gradient, torch would answer with tangents of zero."""
        for x in arguments:
            # not forward_ad.unpack_dual: while tracing it does not know the level
            if isinstance(x, torch.Tensor) and torch._VF._unpack_dual(x, level=0).tangent is not None:
                raise RuntimeError(
                    f"{self.name}: forward-mode derivatives are not implemented; use reverse mode "
                    "(backward, torch.autograd.grad)"
                )

    def _refuse_vmap(self, *arguments: Any) -> Any:
        """torch would loop over the samples in Python, with a warning."""
        raise RuntimeError(
            f"{self.name}: vmap is not implemented; the op takes a batch by itself: join the mapped dimension to it"
        )

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` gives the shapes and dtypes of the result, for tracing."""
        torch.library.register_fake(f"glomo::{self.name}", function, lib=_LIBRARY)
        return function

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """`backward(ctx, grad)`, grad of the first output, gives one gradient per argument of the operator.

        The other outputs have none. Zeros in their place, as large as they are, are not made.
        """
        arguments = len(self.overload._schema.arguments)

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output)

        def of_first(ctx: Any, grad: torch.Tensor | None, *unused: Any) -> Any:
            return (None,) * arguments if grad is None else backward(ctx, grad)

        self._register_autograd(of_first, setup)

    def refuse_derivative(self, op: str) -> None:
        """For a backward operator: its derivative is an error that says so, instead of a wrong number."""

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(
                f"{op}: second derivatives are not implemented; call backward without create_graph=True"
            )

        self._register_autograd(refuse)

    def _register_autograd(
        self, backward: Callable[..., Any], setup: Callable[..., Any] | None = None
    ) -> None:
        """What torch.library.register_autograd would register, with less work per call and with the
        refusals in it: compiled functions and exported graphs call the operator without the Python code around it."""
        overload, below = self.overload, torch._C._after_autograd_keyset

        def compute(keyset: Any, arguments: tuple[Any, ...]) -> Any:
            with _AutoDispatchBelowAutograd():
                return overload.redispatch(keyset & below, *arguments)

        def forward(ctx: Any, *arguments: Any) -> Any:  # the keyset is the last of them
            inputs = arguments[:-1]
            result = compute(arguments[-1], inputs)
            if setup is not None:
                setup(ctx, inputs, result)
            return result

        @_unseen
        def backward_of_all(ctx: Any, *grads: Any) -> Any:
            return *backward(ctx, *grads), None

        # A profiler, grad_fn and anomaly detection show the name.
        name = self.name.title().replace("_", "")
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward_of_all)}
        differentiable: Any = type(name, (torch.autograd.Function,), methods)

        @_unseen
        def refusing(keyset: Any, *arguments: Any) -> Any:
            self._refuse_transforms()
            if forward_ad._current_level >= 0:
                self._refuse_tangents(arguments)
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
                return differentiable.apply(*arguments, keyset)
            return compute(keyset, arguments)

        _LIBRARY.impl(self.name, refusing, "Autograd", with_keyset=True)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator: the function below becomes the operator `glomo::<name>`."""
    return lambda function: Operator(name, function)


def storable(named_tuple: Tuple) -> Tuple:
    """Decorator of a NamedTuple that ops take or give: torch.load and torch.export.save refuse those that they were
    not told of."""
    torch.serialization.add_safe_globals([named_tuple])
    _pytree._register_namedtuple(named_tuple, serialized_type_name=f"glomo_kernels.{named_tuple.__name__}")
    return named_tuple
