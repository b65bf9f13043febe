"""The authors' fusion of graphs and word features, against their figures and against dense products."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from glomo_dist.runtime.errors import CheckpointError, ConfigError
from glomo_dist.transfer.ancestor import fuse

PARITY = (
    Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "transfer_conditioned_gate.safetensors"
)
RELATIVE = 1e-10


@pytest.mark.parametrize(("ids", "graphs", "out"), [
    ("context_idxs", "pre_att", "gate_out_context"),
    ("ques_idxs", "pre_att_q", "gate_out_ques"),
])  # fmt: skip
def test_published_fusion(ids: str, graphs: str, out: str) -> None:
    if not PARITY.exists():
        pytest.skip(f"the authors' figures are not here ({PARITY})")
    with safe_open(PARITY, "pt") as f:
        t = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        options = json.loads(f.metadata()["meta"])
    state = {k.removeprefix("state_dict/"): v for k, v in t.items() if k.startswith("state_dict/")}
    features = state["word_emb.weight"][t[ids]]
    got = fuse(state, options, t[graphs], features, (t[ids] > 0).double())
    assert ((got - t[out]).abs().max() / t[out].abs().max()).item() < RELATIVE
    if ids == "context_idxs":  # what goes into the gate, too: concatenation is mode 0 of the same mixtures
        concatenated = torch.cat([features, *dense_mixtures(state, options, t[graphs], features)], -1)
        assert torch.allclose(concatenated, t["gate_in_context"], rtol=RELATIVE, atol=1e-12)


def dense_mixtures(state: dict, options: dict, graphs: Tensor, features: Tensor) -> list[Tensor]:
    o = {k.removeprefix("config/"): v for k, v in options.items()}
    half = graphs.shape[1] // 2
    mixed = []
    for i in range(o["att_cnt"]):
        for d, (name, g) in enumerate((("fw", graphs[:, :half]), ("bw", graphs[:, half:]))):
            parts, product = [], None
            for layer in range(half):
                parts.append(g[:, layer])
                product = g[:, layer] if product is None else g[:, layer] @ product
                if layer and (o["gate_fuse"] == 3 or o.get("trnn")):
                    parts.append(product)
            components = torch.cat(parts, 1)  # [B, C, T, T]
            if o["condition"]:
                w = (
                    features @ state[f"mixt_logits_{name}.{i}.1.weight"].T
                    + state[f"mixt_logits_{name}.{i}.1.bias"]
                )
            else:
                w = state[f"mixt_logits_{name}"][i].expand(*features.shape[:2], -1)
            m = torch.einsum("btc,bctj->btj", w.softmax(-1), components)
            mixed.append(m @ features * state["scales"][d, i])
    return mixed


def make(
    gate_fuse: int, condition: bool, trnn: bool, count: int = 2, layers: int = 3
) -> tuple[dict, dict, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    D, K, T = 6, 2, 7
    components = K * (2 * layers - 1 if gate_fuse == 3 or trnn else layers)
    state: dict[str, Tensor] = {"scales": r(2, count)}
    for name in ("mixt_logits_fw", "mixt_logits_bw"):
        if condition:
            for i in range(count):
                state |= {f"{name}.{i}.1.weight": r(components, D), f"{name}.{i}.1.bias": r(components)}
        else:
            state[name] = r(count, components)
    if gate_fuse >= 2 or trnn:
        for part in ("linear", "gate"):
            state |= {f"gate_layer.{part}.weight": r(5, D * (1 + 2 * count)), f"gate_layer.{part}.bias": r(5)}
    elif gate_fuse == 1:
        state |= {"gru_cell.weight_ih": r(3 * D, 2 * count * D), "gru_cell.weight_hh": r(3 * D, D),
                  "gru_cell.bias_ih": r(3 * D), "gru_cell.bias_hh": r(3 * D)}  # fmt: skip
    graphs = torch.rand(3, 2 * layers, K, T, T, generator=generator, dtype=torch.float64)
    graphs = graphs * (graphs > 0.6)
    options = {"gate_fuse": gate_fuse, "condition": condition, "att_cnt": count, "trnn": trnn}
    return state, options, graphs, r(3, T, D)


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize(
    ("gate_fuse", "trnn"), [(0, False), (1, False), (2, False), (3, False), (0, True), (3, True)]
)
def test_every_option_against_dense_products(gate_fuse: int, trnn: bool, condition: bool) -> None:
    """On the states of an RNN there are always products and a gate, and never the uniform graph."""
    state, options, graphs, features = make(gate_fuse, condition, trnn)
    options["uniform_graph"] = trnn
    mixed = dense_mixtures(state, options, graphs, features)
    together = torch.cat([features, *mixed], -1)
    if gate_fuse >= 2 or trnn:
        linear, gate = (
            together @ state[f"gate_layer.{n}.weight"].T + state[f"gate_layer.{n}.bias"]
            for n in ("linear", "gate")
        )
        expected = linear * torch.sigmoid(gate)
    elif gate_fuse == 1:
        cell = torch.nn.GRUCell(24, 6).double()
        cell.load_state_dict(
            {k.removeprefix("gru_cell."): v for k, v in state.items() if k.startswith("gru_cell.")}
        )
        expected = cell(torch.cat(mixed, -1).flatten(0, 1), features.flatten(0, 1)).view_as(features)
    else:
        expected = together
    got = fuse(state, {f"config/{k}": v for k, v in options.items()}, graphs, features)
    assert torch.allclose(got, expected, rtol=1e-11, atol=1e-12)


def test_uniform_graph_is_the_masked_sum_over_the_padded_length() -> None:
    features = torch.randn(2, 5, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1.0]])
    got = fuse({}, {"gate_fuse": 0, "uniform_graph": True}, None, features, mask)
    assert torch.allclose(got[0, :, 3:], (features[0, :3].sum(0) / 5).expand(5, 3))
    assert torch.allclose(got[1, :, 3:], features[1].mean(0).expand(5, 3))


def test_gradients_reach_weights_and_features() -> None:
    state, options, graphs, features = make(3, True, False)
    state = {k: v.requires_grad_() for k, v in state.items()}
    features.requires_grad_()
    fuse(state, options, graphs, features).square().sum().backward()
    ours = {k: v.grad.clone() for k, v in state.items()} | {"features": features.grad.clone()}
    for v in (*state.values(), features):
        v.grad = None
    together = torch.cat([features, *dense_mixtures(state, options, graphs, features)], -1)
    linear, gate = (
        together @ state[f"gate_layer.{n}.weight"].T + state[f"gate_layer.{n}.bias"]
        for n in ("linear", "gate")
    )
    (linear * torch.sigmoid(gate)).square().sum().backward()
    for name, v in {**state, "features": features}.items():
        assert torch.allclose(ours[name], v.grad, rtol=1e-10, atol=1e-11), name


def four(state: dict) -> dict:
    """The weights of two mixtures more."""
    return {
        k.replace(f".{i}.1", f".{i + 2}.1"): v for k, v in state.items() for i in (0, 1) if f".{i}.1" in k
    }


def test_fewer_mixtures_than_the_model_has_are_refused() -> None:
    """Else the first ones would be used alone, where nothing behind them counts the features."""
    state, options, graphs, features = make(0, condition=False, trnn=False, count=2)
    with pytest.raises(CheckpointError, match=r"scales is \(2, 2\), expected \(2, 1\)"):
        fuse(state, {**options, "att_cnt": 1}, graphs, features)


def test_options_as_a_command_line_has_them() -> None:
    """A switch that says "0" is off."""
    state, options, graphs, features = make(0, condition=False, trnn=False)
    text = {name: str(int(value)) for name, value in options.items()}
    assert torch.equal(fuse(state, text, graphs, features), fuse(state, options, graphs, features))


def test_errors_say_what_is_missing() -> None:
    state, options, graphs, features = make(3, True, False)
    with pytest.raises(CheckpointError, match=r"mixt_logits_fw mixes 10 graphs.* make 6"):
        fuse(state, {**options, "gate_fuse": 2}, graphs, features)
    with pytest.raises(ConfigError, match="gate_fuse must be"):
        fuse(state, {**options, "gate_fuse": 4}, graphs, features)
    with pytest.raises(ConfigError, match="att_cnt must be a whole number"):
        fuse(state, {**options, "att_cnt": 1.5}, graphs, features)
    with pytest.raises(CheckpointError, match=r"gate_layer.linear.weight is \(5, 30\), expected \(any, 54\)"):
        fuse(
            {**state, "scales": torch.ones(2, 4), **four(state)}, {**options, "att_cnt": 4}, graphs, features
        )
    with pytest.raises(CheckpointError, match="scales is missing"):
        fuse({}, options, graphs, features)
    for given, of in ((graphs[:, :5], features), (graphs, features[:, :6]), (graphs, features[:2])):
        with pytest.raises(ConfigError, match=r"graphs must be \[B, 2 \* layers, K, T, T\] and features"):
            fuse(state, options, given, of)
    with pytest.raises(ConfigError, match="graphs are needed"):
        fuse(state, options, None, features)
