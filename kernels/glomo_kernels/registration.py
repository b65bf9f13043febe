"""What the registrations of the ops share."""

from __future__ import annotations

from typing import Any


def refuse_second_derivative(operator: Any, name: str) -> None:
    """Make a derivative of the backward op `operator` an error that says so, instead of a wrong number."""

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{name}: second derivatives are not implemented; call backward without create_graph=True"
        )

    operator.register_autograd(refuse)
