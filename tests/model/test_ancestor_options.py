"""The authors' options and state dicts: which values and parameters are taken, and what is said of the others."""

import dataclasses
import re

import pytest
import torch

from glomo_dist.model import GlomoConfig, ancestor, ancestor_options
from glomo_dist.runtime.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("option", "value"),
    [("nlayers", 2.7), ("nlayers", None), ("sparse_mode", [4]), ("topk_rate", "all"), ("use_value", 2),
     ("use_gru", "no"), ("kernel_size", float("inf")), (5, 3), ("dropout", 10**400), ("cnn_sa", 0), ("yann", 0)],
)  # fmt: skip
def test_values_that_the_authors_do_not_have(option: object, value: object) -> None:
    with pytest.raises(ConfigError, match=f"ancestor option {option}"):
        ancestor.config_from_options({option: value})


def test_numbers_as_a_command_line_has_them() -> None:
    read = ancestor.config_from_options(
        {"nlayers": "2", "use_gru": "0", "topk_rate": "0.5", "dropout": "0.25"}
    )
    assert read == ancestor.config_from_options(
        {"nlayers": 2, "use_gru": 0, "topk_rate": 0.5, "dropout": 0.25}
    )
    assert read.composition == "residual" and read.dropout == 0.25


def test_what_the_authors_take_where_nothing_is_said() -> None:
    """And options of a run, which are no part of the model."""
    expected = GlomoConfig(
        vocab_size=100_000, width=512, heads=8, layers=1, key_layers=1, query_layers=1, kernel_size=3,
        sparsity="square", norm="batch", composition="gru", value="linear", decoder_layers=2, decoder_steps=3,
        scale_grad_by_freq=True,
    )  # fmt: skip
    assert ancestor.config_from_options({}) == expected
    assert ancestor.config_from_options({"momentum": 0.2, "config/bptt": 200, "seed": 1}) == expected
    paper = dataclasses.replace(
        expected, vocab_size=100_001, layers=3, key_layers=4, query_layers=4, sparsity="threshold"
    )
    assert ancestor_options.ancestor_text() == paper


@pytest.mark.parametrize(("rate", "kept"), [(0, 1), (-1.0, 1), (1e308, 10)])
def test_a_topk_rate_of_nothing_keeps_one_unit_and_a_huge_one_all(rate: float, kept: int) -> None:
    torch.manual_seed(5)
    options = {"d": 16, "ntokens": 21, "sparse_mode": 3, "topk_rate": rate}
    model = ancestor.AncestorModel(ancestor.config_from_options(options)).double().eval()
    with torch.no_grad():
        edges = (model.graphs(torch.randperm(21)[None, :11]) > 0).sum(-1)
    assert edges[:, 0].tolist() == [[[min(i, kept) for i in range(11)]] * 8]
    # of no other mode does the rate say anything
    assert ancestor.config_from_options({**options, "sparse_mode": 4}).sparsity == "threshold"


def test_errors_name_the_option_or_the_parameter() -> None:
    with pytest.raises(ConfigError, match=r"sparse_mod'.*sparse_mode"):
        ancestor.config_from_options({"sparse_mod": 1})
    with pytest.raises(ConfigError, match="sparse_mode must be"):
        ancestor.config_from_options({"sparse_mode": 5})
    with pytest.raises(ConfigError, match="contradict"):
        ancestor.config_from_options({"use_gru": True, "no_gru": 1})
    with pytest.raises(ConfigError, match="contradict"):
        ancestor.config_from_options({"use_gru": 0, "no_gru": False})
    options = {"d": 16, "ntokens": 9, "sparse_mode": 4}
    state = ancestor.AncestorModel(ancestor.config_from_options(options)).state_dict()
    with pytest.raises(CheckpointError, match=r"sparse_trans\.0\.bias"):
        ancestor.load(state, {**options, "sparse_mode": 1})
    with pytest.raises(CheckpointError, match=r"weight is \(9, 16\), expected \(12, 16\)"):
        ancestor.load(state, {**options, "ntokens": 12})
    with pytest.raises(CheckpointError, match=r"enc_emb\.weight is missing"):
        ancestor.load({}, options)
    name = "st_predictor_fw.sparse_trans.0.bias"
    for wrong, message in (
        (torch.full_like(state[name], torch.nan), "1 of 1 values are NaN"),
        (state[name].int(), "is of torch.int32"),
        (state[name].to_sparse(), "sparse_coo"),
        (state[name].numpy(), "must be a tensor, got ndarray"),
    ):
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}:? .*{message}"):
            ancestor.load({**state, name: wrong}, options)
    with pytest.raises(CheckpointError, match=r"enc_emb\.weight is \(144,\), expected \(ntokens, d\)"):
        ancestor.load({**state, "enc_emb.weight": state["enc_emb.weight"].flatten()}, {"sparse_mode": 4})
    state["dec_net_bw.out.weight"] = torch.zeros(9, 16)
    with pytest.raises(CheckpointError, match="tied"):
        ancestor.load(state, options)
