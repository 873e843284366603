"""The linear recurrences: scan, loop, convolution and register are one and the same."""

import pytest
import torch

from wrnn.cores.lru import LinearRecurrentUnit
from wrnn.cores.s4d import DiagonalStateSpace
from wrnn.cores.shift import ShiftFilter, ShiftRegister
from wrnn.cores.stack import Layer, LinearStack
from wrnn.recurrence import linear_recurrence


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
@pytest.mark.parametrize("fixed", [True, False])
def test_the_scan_is_the_loop(dtype: torch.dtype, steps: int, fixed: bool) -> None:
    torch.manual_seed(0)
    decay = torch.randn(5 if fixed else (3, steps, 5), dtype=dtype)[..., :5].requires_grad_()
    drive, state = (
        torch.randn(3, steps, 5, dtype=dtype).requires_grad_(),
        torch.randn(3, 5, dtype=dtype).requires_grad_(),
    )
    found = []
    for method in ("loop", "scan"):
        states = linear_recurrence(decay, drive, state, method)
        weights = torch.linspace(-1, 1, states.numel(), dtype=dtype).view_as(states)
        found.append((states, *torch.autograd.grad((states * weights).abs().square().sum(), (decay, drive, state))))
    torch.testing.assert_close(found[0], found[1])
    expected, last = [], state
    for t in range(steps):
        last = (decay if fixed else decay[:, t]) * last + drive[:, t]
        expected.append(last)
    torch.testing.assert_close(found[0][0], torch.stack(expected, 1))
    for method in ("loop", "scan"):
        assert torch.autograd.gradcheck(lambda *args: linear_recurrence(*args, method), (decay, drive, state))  # noqa: B023


def layers() -> dict[str, Layer]:
    torch.manual_seed(0)
    return {
        "lru": LinearRecurrentUnit(4, num_units=6),
        "s4d": DiagonalStateSpace(4, state_size=6),
        "shift": ShiftFilter(4, num_places=9),
        "long shift": ShiftFilter(4, num_places=40),
        "one place": ShiftFilter(4, num_places=1),
    }


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("steps", [1, 8, 30])
def test_a_layer_on_a_sequence_is_its_steps(name: str, steps: int) -> None:
    layer = layers()[name].double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight += 0.1 * torch.randn_like(weight)
    features = torch.randn(2, steps, 4, dtype=torch.float64)
    state = layer.initial_state(2)
    state = state + torch.randn_like(state)
    whole, end = layer(features, state)
    for t in range(steps):
        read, state = layer.step(features[:, t], state)
        torch.testing.assert_close(whole[:, t], read)
    torch.testing.assert_close(end, state)


def test_a_register_of_n_places_gives_back_what_came_n_minus_1_steps_ago() -> None:
    core = ShiftRegister(1, num_channels=1, num_places=5)
    torch.nn.init.ones_(core.input_map.weight)
    torch.nn.init.zeros_(core.input_map.bias)
    inputs = torch.arange(1.0, 13).view(1, 12, 1)
    last_place = core(inputs)[0][0, :, 4]
    assert last_place.tolist() == [0, 0, 0, 0, *range(1, 9)]
    filter_ = ShiftFilter(1, num_places=5)
    with torch.no_grad():
        filter_.skip.zero_()
        filter_.outer.copy_(torch.tensor([[0.0, 0, 0, 0, 1]]))
    read, _ = filter_(inputs, filter_.initial_state(1))
    torch.testing.assert_close(read[0, :, 0], last_place, rtol=0, atol=1e-5)


def test_a_ring_that_shifts_is_an_lru_with_equally_spaced_phases() -> None:
    """The Fourier modes of a linear ring of 8: lambda_q = exp(2 pi i q / 8)."""
    ring = torch.eye(8).roll(1, dims=1)
    found = torch.linalg.eigvals(ring).angle().sort().values
    phases = torch.arange(-3, 5) * torch.pi / 4
    torch.testing.assert_close(found, phases.to(found), rtol=1e-4, atol=1e-4)
    state = torch.randn(1, 8, dtype=torch.float64)
    modes = torch.fft.fft(state)
    turned = linear_recurrence(
        torch.exp(2j * torch.pi * torch.arange(8, dtype=torch.float64) / 8), torch.zeros(1, 13, 8).to(modes), modes
    )
    torch.testing.assert_close(torch.fft.ifft(turned[:, -1]).real, state.roll(-13, dims=1))


def test_units_of_an_lru_start_in_their_ring() -> None:
    layer = LinearRecurrentUnit(3, num_units=2000, radius_min=0.5, radius_max=0.9, max_phase=1.0)
    eigenvalues = layer.eigenvalues.detach()
    assert eigenvalues.abs().min() >= 0.499 and eigenvalues.abs().max() <= 0.901
    assert eigenvalues.abs().square().mean().item() == pytest.approx((0.25 + 0.81) / 2, abs=0.02)
    assert 0 < eigenvalues.angle().min() and eigenvalues.angle().max() <= 1.0
    torch.testing.assert_close(layer.gamma.exp(), (1 - eigenvalues.abs().square()).sqrt())


def test_alone_a_stack_is_linear_and_in_blocks_it_is_not() -> None:
    for block, linear in (("none", True), ("glu", False)):
        torch.manual_seed(0)
        core = LinearStack(2, LinearRecurrentUnit, hidden_size=6, block=block).double()
        one, other = torch.randn(2, 1, 9, 2, dtype=torch.float64)
        at_rest = core(torch.zeros_like(one))[0]
        summed, apart = core(one + other)[0] - at_rest, core(one)[0] + core(other)[0] - 2 * at_rest
        assert torch.allclose(summed, apart) == linear
