"""The authors' SQuAD readers, computed by ours, against their figures and against formulas unit by unit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from glomo_dist.runtime.errors import CheckpointError, ConfigError
from glomo_dist.transfer.ancestor import fuse
from glomo_dist.transfer.readers.ancestor_squad import LONGEST, Text, span_logits, span_loss
from glomo_dist.transfer.readers.spans import best_spans

PARITY = (
    Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "transfer_conditioned_gate.safetensors"
)
RELATIVE = 1e-10


def relative(got: Tensor, exact: Tensor) -> float:
    return ((got - exact).abs().max() / exact.abs().max()).item()


def test_published_logits_loss_and_every_gradient() -> None:
    if not PARITY.exists():
        pytest.skip(f"the authors' figures are not here ({PARITY})")
    with safe_open(PARITY, "pt") as f:
        t = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        options = json.loads(f.metadata()["meta"])
    state = {k[len("state_dict/") :]: v.requires_grad_() for k, v in t.items() if k.startswith("state_dict/")}
    paragraph = Text(t["context_idxs"], t["context_char_idxs"], t["pre_att"])
    question = Text(t["ques_idxs"], t["ques_char_idxs"], t["pre_att_q"])
    logits = span_logits(state, options, paragraph, question)
    exact = torch.stack([t["logit1"], t["logit2"]], 1)
    real = paragraph.real[:, None].expand_as(exact)
    assert relative(logits[real], exact[real]) < RELATIVE
    assert relative(logits[~real], exact[~real]) < RELATIVE
    assert torch.equal(best_spans(logits, LONGEST), torch.stack([t["yp1"], t["yp2"]], 1))
    loss = span_loss(logits, torch.stack([t["y1"], t["y2"]], 1))
    assert relative(loss.detach(), t["loss"]) < RELATIVE
    loss.backward()
    grads = {k.removeprefix("grads/"): v for k, v in t.items() if k.startswith("grads/")}
    assert grads.keys() == state.keys() - {"word_emb.weight"}  # which they do not train
    for name, exact in grads.items():
        assert relative(state[name].grad, exact) < RELATIVE, name


# --- every option, against the formula of one text after the other ---------------------------------------------

CASES = [
    {"graphs": 0, "gate_fuse": 0},
    {"graphs": 0, "gate_fuse": 0, "uniform_graph": 1},
    {"gate_fuse": 0, "att_cnt": 2},
    {"gate_fuse": 1, "original_ptr": 1},
    {"gate_fuse": 2, "square": 1, "elmo": 1},
    {"gate_fuse": 3, "condition": 1, "att_cnt": 2, "original_ptr": 1, "elmo": 1, "glove": 0},
    {"gate_fuse": 3, "condition": 1, "original_ptr": 1, "trnn": 1},
    {"gate_fuse": 3, "trnn": 1, "square": 1},
]
GRU = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
B, T, J, C, H, LAYERS, HEADS = (
    3,
    8,
    4,
    6,
    3,
    2,
    2,
)  # a paragraph's units, a question's, characters, hidden units


def draw(options: dict) -> tuple[dict[str, Tensor], Text, Text, Tensor]:
    """A state dict with random parameters, paragraphs, questions and the answers' words."""
    generator = torch.Generator().manual_seed(11)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 2

    o = {"graphs": 1, "elmo": 0, "glove": 1, "trnn": 0, "condition": 0, "uniform_graph": 0, "original_ptr": 0}
    o |= {"att_cnt": 1, **options}
    state = {"char_emb.weight": r(9, 2), "char_cnn.weight": r(4, 2, 5), "char_cnn.bias": r(4)}
    if o["glove"]:
        state["word_emb.weight"] = r(20, 5).index_fill(0, torch.tensor(0), 0)
    if o["elmo"]:
        state |= {"elmo_scale": r(1), "elmo_mixt_logits": r(3)}

    def linear(name: str, given: int, out: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = r(out, given)
        if bias:
            state[f"{name}.bias"] = r(out)

    def gru(name: str, given: int) -> None:
        state[f"{name}.init_hidden.0"] = r(2, 1, H)
        for end in ("l0", "l0_reverse"):
            for part, shape in (("weight_ih", (3 * H, given)), ("weight_hh", (3 * H, H))):
                state[f"{name}.rnns.0.{part}_{end}"] = r(*shape)
                state[f"{name}.rnns.0.{part.replace('weight', 'bias')}_{end}"] = r(3 * H)

    D = 5 * o["glove"] + 7 * o["elmo"]
    mixed_width, mixed = (2 * H if o["trnn"] else D), 2 * o["att_cnt"] if o["graphs"] else o["uniform_graph"]
    if o["graphs"]:
        state["scales"] = r(2, o["att_cnt"])
        components = HEADS * (2 * LAYERS - 1 if o["gate_fuse"] == 3 else LAYERS)
        for name in ("mixt_logits_fw", "mixt_logits_bw"):
            if o["condition"]:
                for i in range(o["att_cnt"]):
                    linear(f"{name}.{i}.1", mixed_width, components)
            else:
                state[name] = r(o["att_cnt"], components)
    fused = {0: mixed * D, 1: D}.get(o["gate_fuse"], 6)
    if o["gate_fuse"] == 1:
        state |= {"gru_cell.weight_ih": r(3 * D, mixed * D), "gru_cell.weight_hh": r(3 * D, D)}
        state |= {"gru_cell.bias_ih": r(3 * D), "gru_cell.bias_hh": r(3 * D)}
    elif o["gate_fuse"] > 1:
        for part in ("linear", "gate"):
            linear(f"gate_layer.{part}", mixed_width * (1 + mixed), 6)
    gru("rnn", D + 4 + (0 if o["trnn"] else fused))
    width = 2 * H + (fused if o["trnn"] else 0)
    for name, given in (("qc_att", width), ("self_att", 2 * H)):
        linear(f"{name}.input_linear", given, 1, bias=False)
        linear(f"{name}.memory_linear", given, 1, bias=False)
        state[f"{name}.dot_scale"] = r(given)
    linear("linear_1.0", 4 * width, H)
    gru("rnn_2", H)
    linear("linear_2.0", 8 * H, H)
    if o["original_ptr"]:
        gru("rnn_3", H)
        linear("summarizer.net.1", 2 * H, H)
        linear("summarizer.net.3", H, 1, bias=False)
        linear("pointer_net.pointer.net.0", 4 * H, H, bias=False)
        linear("pointer_net.pointer.net.2", H, 1, bias=False)
        state |= {f"pointer_net.grucell.weight_{n}": r(6 * H, 2 * H) for n in ("ih", "hh")}
        state |= {f"pointer_net.grucell.bias_{n}": r(6 * H) for n in ("ih", "hh")}
    else:
        gru("rnn_start", H)
        gru("rnn_end", 3 * H)
        linear("linear_start", 2 * H, 1)
        linear("linear_end", 2 * H, 1)

    def text(units: int, lengths: list[int]) -> Text:
        real = torch.arange(units) < torch.tensor(lengths)[:, None]
        words = torch.randint(1, 20, (B, units), generator=generator) * real
        characters = torch.randint(0, 9, (B, units, C), generator=generator) * real[:, :, None]
        graphs = torch.rand(
            B, 2 * LAYERS, HEADS, units, units, generator=generator, dtype=torch.float64
        ) * real.double().view(B, 1, 1, 1, units)
        return Text(
            words, characters, graphs if o["graphs"] else None, r(B, 3, units, 7) if o["elmo"] else None
        )

    # the longest is not first, and none is as long as the paragraphs' padding
    return state, text(T, [2, 7, 1]), text(J, [4, 1, 3]), torch.tensor([[0, 1], [2, 6], [0, 0]])


def one_after_the_other(state: dict[str, Tensor], o: dict, paragraph: Text, question: Text) -> Tensor:
    """Logits [B, 2, T] with a loop over texts and units."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def cell(x: Tensor, h: Tensor, w: list[Tensor]) -> Tensor:
        r1, z1, n1 = (w[0] @ x + w[2]).chunk(3)
        r2, z2, n2 = (w[1] @ h + w[3]).chunk(3)
        z = torch.sigmoid(z1 + z2)
        return (1 - z) * torch.tanh(n1 + torch.sigmoid(r1 + r2) * n2) + z * h

    def gru(name: str, x: Tensor) -> Tensor:
        both = []
        for d, end in enumerate(("l0", "l0_reverse")):
            weights = [state[f"{name}.rnns.0.{part}_{end}"] for part in GRU]
            h, states = state[f"{name}.init_hidden.0"][d, 0], []
            for unit in x.flip(0) if d else x:
                h = cell(unit, h, weights)
                states.append(h)
            both.append(torch.stack(states[::-1] if d else states))
        return torch.cat(both, 1)

    def attention(name: str, a: Tensor, b: Tensor, real: Tensor) -> Tensor:
        s = linear(f"{name}.input_linear", a) + linear(f"{name}.memory_linear", b).T
        s = s + (a * state[f"{name}.dot_scale"]) @ b.T
        if o.get("square") and not o.get("trnn"):
            s = torch.where(real, s, 0.0) ** 2
            to_b, to_a = s / (s.sum(1, keepdim=True) + 1e-16), s.amax(1) / (s.amax(1).sum() + 1e-16)
        else:
            s = torch.where(real, s, -torch.inf)
            to_b, to_a = s.softmax(1), s.amax(1).softmax(0)
        return torch.cat([a, to_b @ b, a * (to_b @ b), (to_a @ a) * (to_b @ b)], 1)

    def encoded(text: Text, b: int, units: int) -> Tensor:
        x = []
        if "word_emb.weight" in state:
            x.append(state["word_emb.weight"][text.words[b]])
        if text.elmo is not None:
            layers = state["elmo_mixt_logits"].softmax(0)[:, None, None] * text.elmo[b]
            x.append(layers.sum(0) * state["elmo_scale"])
        words = torch.cat(x, 1)
        windows = state["char_emb.weight"][text.characters[b]].unfold(1, 5, 1)
        letters = torch.einsum("tpcw,fcw->tpf", windows, state["char_cnn.weight"]).amax(1)
        given = torch.cat([words, letters + state["char_cnn.bias"]], 1)
        graphs, real = None if text.graphs is None else text.graphs[b : b + 1], text.real[b : b + 1]
        if o.get("trnn"):
            states = padded(gru("rnn", given[:units]), len(words))
            return torch.cat([states, fuse(state, o, graphs, states[None], real)[0]], 1)
        if graphs is not None or o.get("uniform_graph"):
            fused = fuse(state, o, graphs, words[None], real)[0]
            given = torch.cat([given, fused[:, words.shape[1] :] if o["gate_fuse"] == 0 else fused], 1)
        return padded(gru("rnn", given[:units]), len(words))

    def padded(x: Tensor, units: int) -> Tensor:
        return torch.cat([x, x.new_zeros(units - len(x), x.shape[1])])

    found = []
    for b in range(B):
        real, n = paragraph.real[b], int(paragraph.real[b].sum())
        p, q = encoded(paragraph, b, n), encoded(question, b, J)
        read = linear("linear_1.0", attention("qc_att", p, q, question.real[b])).relu()
        again = padded(gru("rnn_2", read[:n]), T)
        read = (read + linear("linear_2.0", attention("self_att", again, again, real)).relu())[:n]
        if not o.get("original_ptr"):
            first = gru("rnn_start", read)
            last = gru("rnn_end", torch.cat([read, first], 1))
            logits = [linear("linear_start", first)[:, 0], linear("linear_end", last)[:, 0]]
        else:
            x, asked = gru("rnn_3", read), q[:, -2 * H :]
            weight = linear("summarizer.net.3", linear("summarizer.net.1", asked).tanh())[:, 0]
            h = torch.where(question.real[b], weight, -torch.inf).softmax(0) @ asked

            def point(h: Tensor, x: Tensor = x) -> Tensor:
                given = linear("pointer_net.pointer.net.0", torch.cat([h.expand(len(x), -1), x], 1))
                return linear("pointer_net.pointer.net.2", given.tanh())[:, 0]

            weights = [state[f"pointer_net.grucell.{part}"] for part in GRU]
            logits = [point(h), point(cell(point(h).softmax(0) @ x, h, weights))]
        found.append(torch.stack([torch.cat([x, x.new_full((T - n,), -1e30)]) for x in logits]))
    return torch.stack(found)


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(f"{k}{v}" for k, v in o.items()))
def test_every_option_against_the_formula(options: dict) -> None:
    state, paragraph, question, labels = draw(options)
    assert len(state) > 30
    for value in state.values():
        value.requires_grad_()
    logits = one_after_the_other(state, options, paragraph, question)
    nats = [
        -logits[b, e, : paragraph.real[b].sum()].log_softmax(0)[labels[b, e]]
        for b in range(B)
        for e in (0, 1)
    ]
    loss = sum(nats) / B
    names = sorted(state)
    expected = dict(zip(names, torch.autograd.grad(loss, [state[n] for n in names]), strict=True))
    got = span_logits(state, {f"config/{k}": v for k, v in options.items()}, paragraph, question)
    real = paragraph.real[:, None].expand_as(got)
    assert relative(got[real], logits[real]) < RELATIVE
    assert (got[~real] < -0.9e30).all()
    ours = span_loss(got, labels)
    assert relative(ours, loss) < RELATIVE
    ours.backward()
    largest = max(g.abs().max() for g in expected.values())
    for name, exact in expected.items():
        if name in ("word_emb.weight", "char_emb.weight"):
            exact = exact.index_fill(0, torch.tensor(0), 0)  # padding does not learn
        # what has a gradient of zero, as a number added to all scores of a softmax, holds rounding
        assert (state[name].grad - exact).abs().max() < RELATIVE * max(exact.abs().max(), 1e-5 * largest), (
            name
        )


def test_the_best_span_is_short_and_forward() -> None:
    logits = torch.zeros(2, 2, 30)
    logits[0, 0, 5], logits[0, 0, 6], logits[0, 1, 4], logits[0, 1, 21] = 2, 1, 9, 9
    logits[1, 0, 7], logits[1, 1, 7] = 1, 1
    assert best_spans(logits, LONGEST)[1].tolist() == [7, 7]
    assert best_spans(logits, LONGEST)[0].tolist() == [6, 21]  # of 16 words; from the fifth it would be 17


def test_errors_say_what_is_missing() -> None:
    options = CASES[5]
    state, paragraph, question, _ = draw(options)
    with pytest.raises(ConfigError, match=r"trained on ELMo's states"):
        span_logits(state, options, paragraph._replace(elmo=None), question)
    with pytest.raises(ConfigError, match="graphs are needed"):
        span_logits(state, options, paragraph, question._replace(graphs=None))
    with pytest.raises(ConfigError, match="each paragraph must have a word"):
        span_logits(state, options, paragraph._replace(words=paragraph.words * 0), question)
    with pytest.raises(CheckpointError, match=r"rnn_start.* is missing"):
        span_logits(state, {**options, "original_ptr": 0}, paragraph, question)
    for name, message in (
        ("qc_att.dot_scale", r"is \(5,\), expected \(6\)"),
        ("linear_1.0.weight", r"is \(5,\), expected \(any, 24\)"),
        ("rnn_2.rnns.0.bias_hh_l0_reverse", r"is \(5,\), expected \(9\)"),
        ("char_cnn.weight", r"is \(5,\), expected \(any, 2, any\)"),
        ("scales", r"is \(5,\), expected \(2, 2\)"),
    ):
        with pytest.raises(CheckpointError, match=f"{name} {message}"):
            span_logits({**state, name: torch.zeros(5)}, options, paragraph, question)
