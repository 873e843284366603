"""The gated cores and the simple one are the framework's, given its weights."""

import math

import pytest
import torch
from torch import nn

from wrnn.cores.gru import GRU
from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.lstm import LSTM


@pytest.mark.parametrize("recurrence", ["auto", "reference"])
@pytest.mark.parametrize("name", ["lstm", "gru", "irnn"])
def test_equal_weights_give_equal_outputs(name: str, recurrence: str) -> None:
    torch.manual_seed(0)
    core = {
        "lstm": lambda: LSTM(3, 8, biases="two", recurrence=recurrence),
        "gru": lambda: GRU(3, 8, biases="two", recurrence=recurrence),
        "irnn": lambda: IdentityRNN(3, 8, recurrence=recurrence),
    }[name]()
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU, "irnn": nn.RNN}[name](3, 8, batch_first=True)
    if isinstance(theirs, nn.RNN):
        theirs = nn.RNN(3, 8, batch_first=True, nonlinearity="relu")
        named = {"input_map.weight": "weight_ih_l0", "input_map.bias": "bias_ih_l0", "weight": "weight_hh_l0"}
        named["bias"] = "bias_hh_l0"
    else:
        named = {f"cells.{key}": key for key in theirs.state_dict()}
    core.load_state_dict({ours: theirs.state_dict()[key] for ours, key in named.items()})
    inputs = torch.randn(4, 50, 3)
    torch.testing.assert_close(core(inputs)[0], theirs(inputs)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("core", [LSTM(2, 6), GRU(2, 6)])
def test_one_bias_is_one_and_survives_a_copy(core: LSTM | GRU) -> None:
    assert "cells.bias_hh_l0" not in dict(core.named_parameters())
    inputs = torch.randn(2, 5, 2)
    twin = type(core)(2, 6)
    twin.load_state_dict(core.state_dict())
    torch.testing.assert_close(twin(inputs)[0], core(inputs)[0])
    assert core.double()(inputs.double())[0].dtype == torch.float64
    for _ in range(3):  # learning does not move what is no parameter
        core.zero_grad()
        core(inputs.double())[0].sum().backward()
        torch.optim.SGD(core.parameters(), 1.0).step()
    assert not core.cells.bias_hh_l0.any()


def test_gates_start_as_asked() -> None:
    i, f, g, o = LSTM(1, 500, chrono=True, sequence_length=784).cells.bias_ih_l0.detach().chunk(4)
    assert torch.equal(i, -f) and not g.any() and not o.any()
    assert f.min() >= 0 and f.max() <= math.log(783) and float(f.exp().mean()) == pytest.approx(392, rel=0.1)
    assert (LSTM(1, 5, forget_bias=1.0).cells.bias_ih_l0[5:10] == 1).all()
    _, z, n = GRU(1, 500, chrono=True, sequence_length=100).cells.bias_ih_l0.detach().chunk(3)
    assert float(z.exp().mean()) == pytest.approx(50, rel=0.1) and not n.any()
    with pytest.raises(ValueError, match=r"model\.core\.chrono=true: sequence_length=None: must be a whole number"):
        LSTM(1, 5, chrono=True)
