"""Recurrent units side by side are torch's own, states and every gradient."""

import pytest
import torch
from torch import nn

from glomo_dist.transfer.readers import gru

SHAPES = [(2, 1, 1, 1, 1), (2, 7, 3, 5, 4), (2, 40, 5, 12, 17), (1, 9, 2, 3, 6), (3, 4, 1, 8, 2)]


def case(shape, dtype, seed=0):
    """Networks, units [D, T, N, width] and what the states are weighed by in the loss, numbers of float32."""
    D, T, N, width, hidden = shape
    torch.manual_seed(seed)
    networks = nn.ModuleList([nn.GRU(width, hidden) for _ in range(D)]).to(dtype)
    return networks, torch.randn(D, T, N, width).to(dtype), torch.randn(D, T, N, hidden).to(dtype)


def by_themselves(networks, units):
    return torch.stack([network(x)[0] for network, x in zip(networks, units, strict=True)])


def results(run, shape, dtype, seed=0):
    """States, and the gradients of units and parameters by name."""
    networks, units, weights = case(shape, dtype, seed)
    units.requires_grad_()
    states = run(networks, units)
    (states * weights).sum().backward()
    of = {"states": states.detach(), "units": units.grad}
    return of | {name: parameter.grad for name, parameter in networks.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_states_and_gradients_are_those_of_torch(shape):
    wanted = results(by_themselves, shape, torch.float64)
    for name, got in results(gru.side_by_side, shape, torch.float64).items():
        torch.testing.assert_close(
            got, wanted[name], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_float32_is_as_exact_as_torch():
    """Errors of all numbers together, at most 1.5 times those of nn.GRU: over long texts, where they add up."""
    shape = (2, 300, 4, 20, 32)
    exact = results(by_themselves, shape, torch.float64)
    plain = results(by_themselves, shape, torch.float32)
    for name, got in results(gru.side_by_side, shape, torch.float32).items():
        error, base = ((x[name].double() - exact[name]).norm() for x in ({name: got}, plain))
        assert error <= 1.5 * base, f"{name}: error {error:.2e}, that of torch {base:.2e}"


def test_gradcheck():
    networks, units, _ = case((2, 5, 2, 3, 4), torch.float64)
    parameters = list(networks.parameters())
    names = [name for name, _ in networks[0].named_parameters()]

    def states(units, *values):
        networks = []
        for start in range(0, len(values), len(names)):
            network = nn.GRU(3, 4).double()
            for name, value in zip(names, values[start:], strict=False):
                del network._parameters[name]
                setattr(network, name, value)
            networks.append(network)
        return gru.side_by_side(networks, units)

    assert torch.autograd.gradcheck(states, (units.requires_grad_(), *parameters))


def test_inputs_are_left_as_they_are_and_results_do_not_change():
    networks, units, _ = case((2, 30, 3, 8, 8), torch.float32)
    before = units.clone()
    states = gru.side_by_side(networks, units)
    with torch.inference_mode():
        assert torch.equal(gru.side_by_side(networks, units), states)
    turned = units.transpose(1, 2).contiguous().transpose(1, 2)  # other strides
    assert torch.equal(gru.side_by_side(networks, turned), states)
    assert torch.equal(units, before)


def test_under_autocast():
    """Where torch's own network gives states in float32."""

    def cast(run):
        def within(networks, units):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return run(networks, units)

        return within

    shape = (2, 7, 3, 5, 4)
    wanted = results(cast(by_themselves), shape, torch.float32)
    for name, got in results(cast(gru.side_by_side), shape, torch.float32).items():
        torch.testing.assert_close(got, wanted[name], rtol=0.03, atol=0.03, msg=lambda m, n=name: f"{n}: {m}")


def test_second_derivatives_are_refused():
    networks, units, _ = case((2, 3, 2, 3, 4), torch.float64)
    loss = gru.side_by_side(networks, units.requires_grad_()).square().sum()
    (grad,) = torch.autograd.grad(loss, units, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
