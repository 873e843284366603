"""Velocities of waves whose velocity is known."""

import pytest
import torch
from torch import Tensor

from wrnn.analysis.spectrum import share_on_line
from wrnn.analysis.velocity import channel_velocities, velocities
from wrnn.cores.wrnn import TravelingWaveRNN


def profile(num_neurons: int, seed: int = 0) -> Tensor:
    """A smooth random pattern on a ring."""
    random = torch.Generator().manual_seed(seed)
    modes = torch.zeros(num_neurons, dtype=torch.complex128)
    for k in range(1, num_neurons // 6):
        size, phase = torch.rand(2, generator=random, dtype=torch.float64)
        modes[k] = size * k**-0.5 * torch.exp(2j * torch.pi * phase)
    return torch.fft.ifft(modes).real * num_neurons


def moving(pattern: Tensor, velocity: float, num_steps: int) -> Tensor:
    """The pattern, moved `velocity` neurons a step towards lower indices, exactly."""
    modes, space = torch.fft.fft(pattern), torch.fft.fftfreq(len(pattern), dtype=torch.float64)
    turns = [torch.exp(2j * torch.pi * space * velocity * step) for step in range(num_steps)]
    return torch.stack([torch.fft.ifft(modes * turn).real for turn in turns], dim=1)


@pytest.mark.parametrize("velocity", [0.25, 0.36, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("num_neurons", "num_steps"), [(64, 200), (256, 784), (101, 301)])
def test_a_wave_is_measured_within_two_percent(velocity: float, num_neurons: int, num_steps: int) -> None:
    found = velocities(moving(profile(num_neurons), velocity, num_steps))
    (wave,) = found.waves
    assert wave.velocity == pytest.approx(velocity, rel=0.02) and not wave.stands
    assert abs(wave.velocity - velocity) <= 2 * wave.uncertainty < 0.02
    assert wave.share > 0.5


def test_a_measurement_is_never_exact() -> None:
    assert velocities(moving(profile(64), 1.0, 256)).waves[0].uncertainty > 1e-4  # although all peaks are on the grid


def test_a_longer_sequence_tells_more() -> None:
    short, long = (velocities(moving(profile(64), 1.0, steps)).waves[0].uncertainty for steps in (200, 800))
    assert 3 < short / long < 5
    wave = moving(profile(64), 0.7, 200)
    noise = torch.randn(10, 64, 200, generator=torch.Generator().manual_seed(0))
    errors = [
        (found.velocity - 0.7) / found.uncertainty
        for one in noise
        for found in velocities(wave + 2 * wave.std() * one).waves
    ]
    assert len(errors) == 10 and max(map(abs, errors)) < 3


def test_of_waves_that_look_alike_the_slowest_is_taken() -> None:
    place, step = torch.arange(60.0)[:, None], torch.arange(200.0)
    for cycles in (20, 25):
        (wave,) = velocities(torch.cos(2 * torch.pi * cycles * (place + step) / 60)).waves
        assert wave.velocity == pytest.approx(1, abs=0.01)


def test_a_slow_wave_does_not_stand() -> None:
    (wave,) = velocities(moving(profile(256), 0.05, 784)).waves
    assert wave.velocity == pytest.approx(0.05, rel=0.02) and not wave.stands


def test_two_waves_at_once() -> None:
    for num_neurons, num_steps in ((256, 784), (100, 250)):
        both = moving(profile(num_neurons, 0), 0.36, num_steps) + moving(profile(num_neurons, 1), 1.0, num_steps)
        found = sorted(wave.velocity for wave in velocities(both).waves)
        assert found == pytest.approx([0.36, 1.0], rel=0.02)


def test_a_standing_wave_is_said_to_stand() -> None:
    pattern = profile(100)
    found = velocities(moving(pattern, 0.5, 300) + moving(pattern.flip(0), -0.5, 300))
    assert [wave.stands for wave in found.waves] == [True]
    assert found.waves[0].velocity == pytest.approx(0.5, rel=0.02)
    assert found.describe().startswith("standing wave at 0.5") and found.lines == pytest.approx([0.5, -0.5], rel=0.02)


def test_what_stays_is_no_wave() -> None:
    place, step = torch.arange(100.0)[:, None], torch.arange(300.0)
    bump = torch.exp(-((place - 20) ** 2) / 8)
    switched_on = torch.rand(100, 1, generator=torch.Generator().manual_seed(0)) * torch.sigmoid((step - 3 * place) / 5)
    wandering = bump * torch.randn(300, generator=torch.Generator().manual_seed(0)).cumsum(0)
    blinking = bump * torch.cos(0.7 * step).square()
    switched_on = switched_on[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    for states in (bump.expand(100, 300), bump * torch.tanh(step / 50), switched_on, wandering, blinking):
        found = velocities(states)
        assert found.waves == [] and "no wave" in found.describe()
        assert found.static_share > 0.5 or states is wandering or states is blinking


@pytest.mark.parametrize("num_steps", [8, 50, 128, 1024])  # where rest alone is left, and nothing after it
def test_exact_rest_is_rest(num_steps: int) -> None:
    states = torch.zeros(100, num_steps)
    states[0] = 1
    found = velocities(states)
    assert found.describe() == "static: no wave" and found.static_share == pytest.approx(1)


def test_a_front_of_few_steps_is_not_said_to_rest() -> None:
    place, step = torch.arange(100)[:, None], torch.arange(100)
    front = (-place % 100 <= step).float()
    assert velocities(front).waves[0].velocity == pytest.approx(1, abs=0.05)
    assert velocities(front[:, :50]).describe() == "too short to tell a wave from rest"
    bump = torch.exp(-((place - 50 + 0.1 * torch.arange(300)) ** 2) / 50)  # moves by 30 neurons, half its wavelength
    assert velocities(bump).describe() == "too short to tell a wave from rest"


def test_rest_that_is_more_than_the_wave_is_told() -> None:
    wave = moving(profile(64), 1.0, 200)
    found = velocities(wave + 2 * wave[:, :1]).describe()
    assert found.startswith("1.000 ±") and found.endswith("% at rest")


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_wave(seed: int) -> None:
    found = velocities(torch.randn(64, 200, generator=torch.Generator().manual_seed(seed)))
    assert found.waves == [] and found.describe() == "no wave above chance"


def test_a_wave_under_noise_is_found() -> None:
    wave = moving(profile(256), 1.0, 784)
    noise = torch.randn(256, 784, generator=torch.Generator().manual_seed(0))
    (found,) = velocities(wave + 2 * wave.std() * noise).waves
    assert found.velocity == pytest.approx(1, abs=0.01) and 0.1 < found.share < 0.3


def test_inputs_on_a_wave_rnn_travel_at_one_neuron_a_step() -> None:
    pulses = (torch.rand(1, 784, 1, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    with torch.no_grad():
        states = TravelingWaveRNN(1, num_channels=2, ring_size=256)(pulses)[0][0].T.unflatten(0, (2, 256))
    each, pooled = channel_velocities(states)
    for found in (*each, pooled):
        assert [wave.velocity for wave in found.waves] == [pytest.approx(1, abs=0.01)]
    assert share_on_line(states[0], 1.0) > 0.9


def test_silence_and_states_that_are_none() -> None:
    for nothing in (torch.zeros(8, 8), torch.full((101, 301), 0.1), torch.rand(1, 300).expand(100, 300)):
        assert velocities(nothing).describe() == "no wave above chance" and share_on_line(nothing, 0.0) == 0
    for wrong, message in ((torch.zeros(2, 9), "must be"), (torch.full((9, 9), float("nan")), "must be finite")):
        with pytest.raises(ValueError, match=message):
            velocities(wrong)
    with pytest.raises(ValueError, match="max_velocity=0: must be above 0"):
        velocities(torch.rand(9, 9), max_velocity=0)
