"""Gated recurrent units (Cho et al. 2014) over several sequences at once, as fast as a CPU allows.

torch.nn.GRU records every operation of every time step for its gradients and multiplies by the transposed weights
once per step. Here the steps are one function: its gradient keeps to what one step needs of the next, and the
gradients of the weights are one product over all of them. A training step of a reader takes two thirds of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def side_by_side(networks: Sequence[nn.GRU], units: Tensor) -> Tensor:
    """States [D, T, N, hidden] of D networks of one layer, each over its own units [D, T, N, width].

    The same numbers as those of the networks themselves, but for the order of the sums.
    """
    D, T, N, width = units.shape
    of_inputs, of_states, bias_of_inputs, bias_of_states = (
        torch.stack([getattr(network, f"{name}_l0") for network in networks])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    inputs = torch.baddbmm(bias_of_inputs[:, None], units.reshape(D, T * N, width), of_inputs.mT)
    return _Steps.apply(inputs.view(D, T, N, -1), of_states, bias_of_states)


class _Steps(torch.autograd.Function):
    """inputs [D, T, N, 3 H], what the units add to the gates r, z and n; weight [D, 3 H, H], bias [D, 3 H] of the
    states -> states [D, T, N, H], from zero on:

    r, z = sigmoid(inputs + weight h + bias)    n = tanh(inputs + r (weight h + bias))    h' = n + z (h - n)

    Under autocast in float32, as torch.nn.GRU.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        D, T, N, _ = inputs.shape
        H = weight.shape[2]
        of_states, gates = torch.empty_like(inputs), torch.empty_like(inputs)
        states = inputs.new_empty(D, T, N, H)
        r, z, n = (_steps(gate) for gate in gates.chunk(3, -1))
        inputs_rz, states_rz, rz = (_steps(x[..., : 2 * H]) for x in (inputs, of_states, gates))
        inputs_n, states_n = (_steps(x[..., 2 * H :]) for x in (inputs, of_states))
        every, out = _steps(of_states), _steps(states)
        h = inputs.new_zeros(D, N, H)
        for t in range(T):
            torch.baddbmm(bias[:, None], h, weight.mT, out=every[t])
            torch.add(inputs_rz[t], states_rz[t], out=rz[t]).sigmoid_()
            torch.addcmul(inputs_n[t], r[t], states_n[t], out=n[t]).tanh_()
            h = torch.lerp(n[t], h, z[t], out=out[t])
        ctx.save_for_backward(weight, of_states[..., 2 * H :], gates, states)
        return states

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, states_n, gates, states = ctx.saved_tensors
        D, T, N, H = states.shape
        r, z, n = gates.chunk(3, -1)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        # What a gradient of h', or of n's own sum for r, is multiplied by on its way to the sums in the gates.
        by_n = (1 - z) * (1 - n * n)
        by_z = (before - n) * z * (1 - z)
        by_r = states_n * r * (1 - r)
        d_inputs_n, d_states = torch.empty_like(states), torch.empty_like(gates)
        for_inputs, every = _steps(d_inputs_n), _steps(d_states)
        for_r, for_z, for_n = (_steps(x) for x in d_states.chunk(3, -1))
        by_time = [_steps(x) for x in (r, z, by_n, by_z, by_r, grad)]
        later = torch.zeros_like(states[:, 0])  # d h from the next step
        d_h = torch.empty_like(later)
        for t in reversed(range(T)):
            r_t, z_t, by_n_t, by_z_t, by_r_t, grad_t = (x[t] for x in by_time)
            torch.add(grad_t, later, out=d_h)
            torch.mul(d_h, by_n_t, out=for_inputs[t])
            torch.mul(d_h, by_z_t, out=for_z[t])
            torch.mul(for_inputs[t], by_r_t, out=for_r[t])
            torch.mul(for_inputs[t], r_t, out=for_n[t])
            torch.baddbmm(d_h.mul_(z_t), every[t], weight, out=later)
        rows = d_states.view(D, T * N, -1)
        d_weight = rows.mT @ before.view(D, T * N, H)
        return torch.cat([d_states[..., : 2 * H], d_inputs_n], -1), d_weight, rows.sum(1)


def _steps(x: Tensor) -> tuple[Tensor, ...]:
    """x [D, T, ...] by time."""
    return x.unbind(1)
