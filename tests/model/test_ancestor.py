"""The authors' models, computed by ours, against their published code's figures and a dense formula."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from glomo_dist.model import ancestor, ancestor_options

PARITY = (
    Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "pretrain_gru_threshold.safetensors"
)
RELATIVE = 1e-10


def relative(got: Tensor, exact: Tensor) -> float:
    return ((got - exact).abs().max() / exact.abs().max()).item()


class Figures:
    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as f:
            self.tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            meta = json.loads(f.metadata()["meta"])
        self.options = {k: v for k, v in meta.items() if k.startswith("config/")}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def model(self, mode: str) -> ancestor.AncestorModel:
        state = self.under("state_dict_eval/" if mode == "eval" else "state_dict_init/")
        return ancestor.load(state, self.options).double().train(mode == "train")


@pytest.fixture(scope="module")
def figures() -> Figures:
    if not PARITY.exists():
        pytest.skip(f"the authors' figures are not here ({PARITY})")
    return Figures(PARITY)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_published_graphs_and_outputs(figures: Figures, mode: str) -> None:
    ids = figures["ids"]
    with torch.no_grad():
        assert relative(figures.model(mode).graphs(ids), figures[f"{mode}_graphs"]) < RELATIVE
        assert relative(figures.model(mode).outputs(ids), figures[f"{mode}_outputs"]) < RELATIVE


def test_published_graphs_and_outputs_with_padding(figures: Figures) -> None:
    model = figures.model("eval")
    given = figures["masked_ids"], figures["mask"]
    with torch.no_grad():
        assert relative(model.graphs(*given), figures["eval_graphs_masked"]) < RELATIVE
        assert relative(model.outputs(*given), figures["eval_outputs_masked"]) < RELATIVE


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_published_loss_and_every_gradient(figures: Figures, mode: str) -> None:
    model = figures.model(mode)
    loss = model.loss(figures["ids"], figures[f"{mode}_idx_fw"], figures[f"{mode}_idx_bw"])
    loss.backward()
    assert relative(loss.detach(), figures[f"{mode}_loss"]) < RELATIVE
    expected = figures.under(f"{mode}_grads/")
    got = {name: p.grad for name, p in model.named_parameters()}
    assert got.keys() == expected.keys()
    largest = max(g.abs().max() for g in expected.values())
    for name, exact in expected.items():
        # A convolution's bias before batch statistics has an exact gradient of zero: what is there is rounding,
        # to be measured against the gradients that cancel.
        scale = max(exact.abs().max(), 1e-5 * largest)
        assert (got[name] - exact).abs().max() / scale < RELATIVE, name


def test_published_batch_statistics(figures: Figures) -> None:
    model = figures.model("train")
    model.loss(figures["ids"], figures["train_idx_fw"], figures["train_idx_bw"])
    state = model.state_dict()
    after = figures.under("state_dict_after_one_train_forward/")
    assert state.keys() == after.keys()
    for name, exact in after.items():
        assert torch.allclose(state[name].double(), exact.double(), rtol=RELATIVE, atol=1e-14), name


# --- every option, against the formula written out densely ---------------------------------------------------

CASES = [
    {"sparse_mode": mode, **composition}
    for mode in range(5)
    for composition in ({"no_gru": 0}, {"no_gru": 1, "use_value": 1}, {"no_gru": 1, "use_value": 0})
] + [
    {"sparse_mode": 3, "topk_rate": 0.3, "kernel_size": 2, "nlayers": 1, "nlayers_key": 0, "dec_layers": 1},
    {"sparse_mode": 4, "kernel_size": 5, "nlayers": 3, "nlayers_query": 3, "dec_len": 2},
]


def dense_graphs(
    model: ancestor.AncestorModel, o: dict, ids: Tensor, mask: Tensor | None
) -> tuple[list, list]:
    """Graphs and outputs of both directions straight from the formulas, T x T in memory."""
    p = dict(model.named_parameters()) | dict(model.named_buffers())
    graphs, outputs = [], []
    for name in ("fw", "bw"):
        x = p["enc_emb.weight"][ids]
        m = torch.ones(ids.shape) if mask is None else mask
        if name == "bw":
            x, m = x.flip(1), m.flip(1)
        at = f"st_predictor_{name}."

        def cnn(which: str, layers: int, at: str = at, x: Tensor = x, m: Tensor = m) -> Tensor:
            for i in range(layers):
                w, b = p[f"{at}{which}_cnn.{i}.0.weight"], p[f"{at}{which}_cnn.{i}.0.bias"]
                given = F.pad((x * m[:, :, None]).transpose(1, 2), (w.shape[2] - 1, 0))
                y = F.conv1d(given, w, b)
                n = f"{at}{which}_cnn.{i}.1."
                scale = p[n + "weight"] / (p[n + "running_var"] + 1e-5).sqrt()
                y = (y - p[n + "running_mean"][:, None]) * scale[:, None] + p[n + "bias"][:, None]
                x = y.clamp(min=0).transpose(1, 2)
            return x

        keys, queries = cnn("key", o["nlayers_key"]), cnn("query", o["nlayers_query"])
        f = x
        B, T, d = x.shape
        earlier = torch.ones(T, T).tril(-1) * m[:, None, None, :]
        for layer in range(o["nlayers"]):
            q, k = (
                (v @ p[f"{at}{n}_dot_trans.{layer}.weight"].T + p[f"{at}{n}_dot_trans.{layer}.bias"])
                .view(B, T, 8, d // 2)
                .permute(0, 2, 1, 3)
                for n, v in (("query", queries), ("key", keys))
            )
            s = torch.einsum("bhid,bhjd->bhij", q, k)
            if o["sparse_mode"] == 2:
                s = s - p[f"{at}sparse_bias"][layer]
            elif o["sparse_mode"] == 4:
                s = s - q @ p[f"{at}sparse_trans.{layer}.weight"].T - p[f"{at}sparse_trans.{layer}.bias"]
            if o["sparse_mode"] in (1, 2, 4):
                s = s.clamp(min=0)
            a = (s * earlier) ** 2
            if o["sparse_mode"] == 3:
                count = min(max(int(math.sqrt(T) * o["topk_rate"]), 1), T)
                a = a * (a >= a.sort(-1, descending=True)[0][..., count - 1 : count])
            graph = a / (a.sum(-1, keepdim=True) + 1e-16)
            values = f
            if o["no_gru"] and o["use_value"]:
                values = f @ p[f"{at}value_trans.{layer}.weight"].T + p[f"{at}value_trans.{layer}.bias"]
            mixed = torch.einsum("bhij,bjhd->bihd", graph, values.view(B, T, 8, -1)).reshape(B, T, d)
            if o["no_gru"]:
                f = f + mixed
            else:
                gates = torch.cat([mixed * f, mixed], -1) @ p[f"{at}gru_cell.weight_ih"].T
                r1, z1, n1 = (gates + p[f"{at}gru_cell.bias_ih"]).chunk(3, -1)
                r2, z2, n2 = (f @ p[f"{at}gru_cell.weight_hh"].T + p[f"{at}gru_cell.bias_hh"]).chunk(3, -1)
                z = torch.sigmoid(z1 + z2)
                f = (1 - z) * torch.tanh(n1 + torch.sigmoid(r1 + r2) * n2) + z * f
            graphs.append(graph.flip(-1, -2) if name == "bw" else graph)
            outputs.append(f.flip(1) if name == "bw" else f)
    return graphs, outputs


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(f"{k}{v}" for k, v in o.items()))
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
def test_every_option_against_the_formula(options: dict, padded: bool) -> None:
    torch.manual_seed(3)
    o = {"d": 16, "ntokens": 21, "nlayers": 2, "nlayers_key": 2, "nlayers_query": 1, **options}
    model = ancestor.AncestorModel(ancestor.config_from_options(o)).double().eval()
    o = {**ancestor_options.DEFAULTS, "no_gru": 0, **o}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            # of the size of what the convolutions put out, so that about half of the units stay alive
            if "running_mean" in name:
                buffer.uniform_(-0.1, 0.1)
            elif "running_var" in name:
                buffer.uniform_(0.02, 0.1)
        for name, parameter in model.named_parameters():
            parameter.mul_(2.0)
            if name.endswith("sparse_bias"):  # of all layers they begin as one number
                parameter.add_(torch.arange(len(parameter)) / 50)
    # no word twice: two equal keys would be a tie, which top-k may break either way
    ids = torch.stack([torch.randperm(21)[:11] for _ in range(3)])
    mask = (torch.arange(11) < torch.tensor([[11], [6], [1]])).double() if padded else None
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        graphs, outputs = dense_graphs(model, o, ids, mask)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        assert relative(model.graphs(ids, mask), torch.stack(graphs, 1)) < RELATIVE
        assert relative(model.outputs(ids, mask)[1:], torch.stack(outputs)) < RELATIVE


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(f"{k}{v}" for k, v in o.items()))
def test_gradients_are_the_slope_of_the_loss(options: dict) -> None:
    """Central differences in a random direction; the embedding is left out, its gradient is scaled by counts."""
    torch.manual_seed(4)
    o = {"d": 16, "ntokens": 21, "nlayers": 2, **options}
    model = ancestor.AncestorModel(ancestor.config_from_options(o)).double().train()
    ids, at = torch.randint(0, 21, (2, 11)), torch.tensor([0, 2, 5])
    model.loss(ids, at, at).backward()
    parameters = [(n, p) for n, p in model.named_parameters() if n != "enc_emb.weight" and p.grad is not None]
    steps = [torch.randn_like(p) for _, p in parameters]
    slope = sum((p.grad * v).sum() for (_, p), v in zip(parameters, steps, strict=True))
    losses = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            for (_, p), v in zip(parameters, steps, strict=True):
                p.add_(v, alpha=h)
            losses.append(model.loss(ids, at, at))
            for (_, p), v in zip(parameters, steps, strict=True):
                p.sub_(v, alpha=h)
    assert slope.item() == pytest.approx(((losses[0] - losses[1]) / 2e-6).item(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("wrong", [-1, 8, 11])
def test_positions_without_enough_units_after_them(wrong: int) -> None:
    """They would be read from the neighbours in the batch, or count fewer units than in the authors' code."""
    model = ancestor.AncestorModel(ancestor.config_from_options({"d": 16, "ntokens": 9, "dec_len": 3}))
    ids, fine = torch.randint(0, 9, (2, 11)), torch.tensor([0, 7])
    first = torch.tensor([0, 1])
    assert model.loss(ids, fine, fine).isfinite()
    assert model(ids, fine, first) == model.loss(ids, fine, first) != model.loss(ids, first, fine)
    with pytest.raises(ValueError, match=r"positions_backward must be from 0 to 7, .*got \[0, "):
        model.loss(ids, fine, torch.tensor([0, wrong]))


def test_the_loss_of_real_units_does_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    model = ancestor.AncestorModel(ancestor.config_from_options({"d": 16, "ntokens": 9, "sparse_mode": 0}))
    model.double().eval()
    ids = torch.randint(0, 9, (2, 11))
    other = torch.cat([ids[:, :8], (ids[:, 8:] + 1) % 9], 1)
    sampled = (
        torch.tensor([0, 4]),
        torch.tensor([3, 7]),
    )  # counted from the end, where there are three of padding
    mask = (torch.arange(11) < 8).expand(2, -1)
    assert model.loss(ids, *sampled, mask) == model.loss(other, *sampled, mask)
    assert model.loss(ids, *sampled) != model.loss(other, *sampled)


def test_state_dict_goes_round() -> None:
    torch.manual_seed(0)
    options = {"d": 16, "ntokens": 9, "sparse_mode": 2, "no_gru": 1, "nlayers": 2}
    model = ancestor.AncestorModel(ancestor.config_from_options(options))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert "st_predictor_bw.value_trans.1.weight" in state
    assert "dec_net_fw.out.weight" in state
    given = {name: value for name, value in options.items() if name not in ("d", "ntokens")}
    again = ancestor.load(state, given)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    assert given == {"sparse_mode": 2, "no_gru": 1, "nlayers": 2}
    double = ancestor.load({k: v.double() if v.is_floating_point() else v for k, v in state.items()}, options)
    assert {p.dtype for p in double.parameters()} == {torch.float64}


def test_a_state_without_the_counters_of_batch_norm_and_the_second_name_of_what_is_tied() -> None:
    """The first as PyTorch saved it when the authors' code was written."""
    options = {"d": 16, "ntokens": 9, "sparse_mode": 4}
    state = ancestor.AncestorModel(ancestor.config_from_options(options)).state_dict()
    left_out = ("num_batches_tracked", "out.weight")
    old = {name: value for name, value in state.items() if not name.endswith(left_out)}
    assert len(old) < len(state) - 2
    again = ancestor.load(old, options).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
