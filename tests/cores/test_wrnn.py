"""The physics and the published sizes of the wRNN and the iRNN."""

import pytest
import torch

from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.inits import Initializer, identity_, shift_


@pytest.mark.parametrize("recurrence", ["torch", "reference"])
def test_an_impulse_travels_one_neuron_a_step_towards_lower_indices(recurrence: str) -> None:
    core = TravelingWaveRNN(input_size=1, num_channels=3, ring_size=11, recurrence=recurrence)
    steps = 3 * 11
    impulse = torch.zeros(1, steps, 1)
    impulse[0, 0] = 1
    states = core(impulse)[0].detach().view(steps, 3, 11)
    expected = torch.zeros(steps, 3, 11)
    for step in range(steps):
        expected[step, :, -step % 11] = 1
    assert torch.equal(states, expected)  # exactly: a shift adds nothing up


def test_under_the_identity_it_stays() -> None:
    core = TravelingWaveRNN(input_size=1, num_channels=2, ring_size=5, init=Initializer(identity_))
    impulse = torch.zeros(1, 9, 1)
    impulse[0, 0] = 1
    states = core(impulse)[0].detach().view(9, 2, 5)
    assert torch.equal(states[-1], torch.tensor([[1.0, 0, 0, 0, 0]] * 2))


def test_a_slow_wave_moves_its_centre_by_the_velocity() -> None:
    core = TravelingWaveRNN(1, 1, 101, init=Initializer(lambda weight: shift_(weight, 0.3))).double()
    impulse = torch.zeros(1, 41, 1, dtype=torch.float64)
    impulse[0, 0] = 1
    final = core(impulse, last_only=True)[0][0].detach()
    places = -((torch.arange(101) + 50) % 101 - 50)  # neurons travelled, in (-51, 50]
    torch.testing.assert_close(float((final * places).sum()), 40 * 0.3)
    torch.testing.assert_close(float(final.sum()), 1.0)


def test_a_core_works_without_a_config_in_float64() -> None:
    core = TravelingWaveRNN(input_size=3, num_channels=4, ring_size=9, kernel_size=5).double()
    outputs, state = core(torch.rand(2, 6, 3, dtype=torch.float64))
    assert outputs.shape == (2, 6, 36) and outputs.dtype == torch.float64 and state.shape == (2, 4, 9)


@pytest.mark.parametrize(("n", "c", "m", "o"), [(256, 16, 1, 10), (256, 16, 96, 10), (100, 6, 10, 10), (100, 27, 2, 1)])
def test_parameter_counts(n: int, c: int, m: int, o: int) -> None:
    core = TravelingWaveRNN(m, c, n)
    weights = n * c * m + c * c * 3
    assert sum(w.numel() for w in core.parameters()) == weights + n * c + c
    core_i = IdentityRNN(m, n)
    assert sum(w.numel() for w in core_i.parameters()) == n * m + n * n + 2 * n


def test_an_identity_rnn_integrates_its_bias() -> None:
    core = IdentityRNN(1, 4)
    with torch.no_grad():
        core.bias.copy_(torch.tensor([0.5, -0.5, 0.0, 1.0]))
    final = core(torch.zeros(1, 20, 1), last_only=True)[0][0]
    torch.testing.assert_close(final, torch.tensor([10.0, 0.0, 0.0, 20.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 0}, "num_channels=0: must be a whole number"),
        ({"num_channels": 2.0}, "num_channels=2.0: must be a whole number"),
        ({"kernel_size": 4}, "kernel_size=4: must be odd"),
        ({"ring_size": 5, "kernel_size": 7}, "kernel_size=7: must be odd and at most .*ring_size=5"),
        ({"kernel_size": 1}, "init=shift: needs an odd kernel_size of at least 3, not 1; use init=identity"),
        ({"nonlinearity": "sine"}, "nonlinearity='sine': must be one of relu, tanh, identity"),
    ],
)
def test_bad_sizes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TravelingWaveRNN(1, **options)


@pytest.mark.parametrize("recurrence", ["cpp", "torch", "reference"])
def test_inputs_that_all_share_may_be_computed_once(recurrence: str) -> None:
    torch.manual_seed(0)
    core = TravelingWaveRNN(input_size=20, num_channels=3, ring_size=11, recurrence=recurrence).double()
    inputs = torch.randn(4, 9, 20, dtype=torch.float64)
    inputs[:, 5:] = inputs[:1, 5:]
    found = {}
    for shared_from in (None, 5):
        for last_only in (True, False):
            core.zero_grad()
            outputs, _ = core(inputs, last_only=last_only, shared_from=shared_from)
            outputs.square().sum().backward()
            found[shared_from, last_only] = [outputs, *(parameter.grad for parameter in core.parameters())]
    for last_only in (True, False):
        torch.testing.assert_close(found[5, last_only], found[None, last_only])


@pytest.mark.parametrize("recurrence", ["cpp", "torch"])
def test_a_readout_inside_the_loop_is_the_readout_of_all_states(recurrence: str) -> None:
    core = TravelingWaveRNN(input_size=2, num_channels=3, ring_size=11, recurrence=recurrence)
    readout, inputs = torch.nn.Linear(33, 4), torch.randn(2, 7, 2)
    torch.testing.assert_close(core.read_every_step(inputs, readout), readout(core(inputs)[0]), rtol=1e-5, atol=1e-5)
