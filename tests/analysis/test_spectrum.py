"""Where in the spectrum a wave is."""

import pytest
import torch
from test_velocity import moving, profile

from wrnn.analysis.spectrum import share_on_line, spectrum


def test_a_sinusoid_is_one_point_and_its_mirror_image_on_the_line_of_its_velocity() -> None:
    place, step = torch.arange(32.0)[:, None], torch.arange(64.0)
    found = spectrum(torch.sin(2 * torch.pi * (4 / 32 * place + 8 / 64 * step)))  # h(x, t) = f(x + v t), v = 1
    row, column = divmod(int(found.magnitude.argmax()), 64)
    point = float(found.space_frequency[row]), float(found.time_frequency[column])
    assert abs(point[0]) == 4 / 32 and point[1] / point[0] == 1
    assert int((found.magnitude > 1e-6 * found.magnitude.max()).sum()) == 2
    assert found.space_frequency.min() == -0.5 == found.time_frequency.min()


@pytest.mark.parametrize("velocity", [0.36, 1.0, 4.0, -1.0])
def test_the_power_of_a_wave_is_on_its_line_also_where_it_wraps_around(velocity: float) -> None:
    states = moving(profile(64), velocity, 200)
    assert share_on_line(states, velocity) > 0.99
    assert share_on_line(states, velocity + 1.7) < 0.1 and share_on_line(torch.zeros(8, 8), 1.0) == 0


def test_noise_is_everywhere() -> None:
    noise = torch.randn(256, 400, generator=torch.Generator().manual_seed(0))
    assert share_on_line(noise, 1.0) == pytest.approx(4 / 400, rel=0.1)


def test_the_two_normalisations() -> None:
    """A bump that stays is autocorrelated in space alone: dividing by copies shuffled in time leaves nothing of it."""
    bump = torch.exp(-((torch.arange(64.0) - 30) ** 2) / 50)[:, None].expand(64, 100)
    time_alone = spectrum(bump, "time_shuffled").magnitude
    both = spectrum(bump, "shuffled").magnitude
    row = 64 // 2 + 1, 50  # the lowest space frequency, at rest
    assert float(time_alone[row]) == pytest.approx(1) and float(both[row]) > 3
    wave = moving(profile(64), 1.0, 100)
    for normalize in ("shuffled", "time_shuffled"):
        found = spectrum(wave, normalize)
        row, column = divmod(int(found.magnitude.argmax()), 100)
        assert float(found.magnitude.max()) > 3
        assert abs(float(found.time_frequency[column]) - float(found.space_frequency[row])) <= 1 / 100
    with pytest.raises(ValueError, match="normalize='both': must be one of raw, shuffled, time_shuffled"):
        spectrum(bump, "both")
