"""The delay line with a linear readout is one linear layer on the whole sequence."""

import torch
from torch import nn

from wrnn.cores.linear import DelayLine


def test_it_is_a_layer_on_the_flattened_sequence() -> None:
    inputs = torch.randn(3, 8, 2)
    core, readout = DelayLine(2, 8), nn.Linear(16, 5)
    newest_first = inputs.flip(1).flatten(1)
    assert torch.equal(readout(core(inputs, last_only=True)[0]), readout(newest_first))


def test_what_it_forgets_is_what_left_the_line() -> None:
    inputs = torch.arange(1.0, 11).view(1, 10, 1)
    assert DelayLine(1, 4)(inputs)[0][0].tolist()[-1] == [10, 9, 8, 7]
