"""What a state knows: onsets, dimensions, the past. Cores whose memory is known by construction."""

import pytest
import torch

from wrnn.analysis.dimension import participation_ratio
from wrnn.analysis.memory import memory_span, read_back
from wrnn.analysis.onsets import decode_onsets
from wrnn.analysis.plots import states_of
from wrnn.cores.linear import DelayLine
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.inits import Initializer, identity_, shift_, source_identity_

OWN_INPUT = Initializer(source_identity_)


def rings(start: object, num_channels: int = 3, ring_size: int = 40, velocity: float = 1.0) -> TravelingWaveRNN:
    init = Initializer(start)
    return TravelingWaveRNN(num_channels, num_channels, ring_size, init=init, input_init=OWN_INPUT)


def test_onsets_on_a_field_of_waves_are_read_exactly_and_on_a_bump_they_are_not() -> None:
    trains = (torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    state = states_of(rings(shift_), trains)[:, :, -1]
    read = torch.zeros_like(trains)
    for onset in decode_onsets(state):
        assert onset.strength == 1
        read[39 - round(onset.steps_ago), onset.channel] = 1
    assert torch.equal(read, trains)
    half = torch.zeros(1, 40)
    half[0, 2] = 1  # five neurons below the source, at two steps a neuron
    assert [onset.steps_ago for onset in decode_onsets(half, velocity=0.5, source=7)] == [10]
    shifted = trains.roll(7, dims=0)
    bumps = [states_of(rings(identity_), train)[:, :, -1] for train in (trains, shifted)]
    assert torch.equal(*bumps)  # other times, the same state
    for wrong, message in (({"velocity": 0}, "velocity=0"), ({"source": 40}, r"source=40: must be in \[0, 39\]")):
        with pytest.raises(ValueError, match=message):
            decode_onsets(state, **wrong)


def test_dimensions_of_waves() -> None:
    place, step = torch.arange(64.0)[:, None], torch.arange(640.0)
    travelling = torch.sin(2 * torch.pi * (place + step) / 64)
    standing = torch.sin(2 * torch.pi * place / 64) * torch.cos(2 * torch.pi * step / 64)
    assert participation_ratio(travelling) == pytest.approx(2, abs=1e-6)
    assert participation_ratio(standing) == pytest.approx(1, abs=1e-6)
    assert participation_ratio(torch.ones(5, 9)) == 0
    noise = torch.randn(20, 20_000, generator=torch.Generator().manual_seed(0))
    assert participation_ratio(noise) == pytest.approx(20, rel=0.02)


def test_a_ring_remembers_one_turn_exactly_and_two_turns_by_half() -> None:
    core = rings(shift_, num_channels=1)
    once = memory_span(core, 1, num_steps=40, num_sequences=400)
    assert once.span == 40 and once.capacity == pytest.approx(40, abs=0.01)
    twice = memory_span(core, 1, num_steps=80, num_sequences=4000)
    torch.testing.assert_close(twice.r2, torch.full((80,), 0.5, dtype=torch.float64), atol=0.1, rtol=0)
    assert twice.capacity == pytest.approx(40, rel=0.05)


def test_a_bump_remembers_the_sum_alone_and_a_delay_line_its_length() -> None:
    bump = memory_span(rings(identity_, num_channels=1), 1, num_steps=20, num_sequences=4000)
    assert bump.span == 0 and bump.capacity == pytest.approx(1, abs=0.2)  # 1 / 20 of each of 20 inputs
    line = memory_span(DelayLine(2, 12), 2, num_steps=30, num_sequences=400)
    assert line.span == 12 and line.capacity == pytest.approx(12, abs=0.2)


def test_as_many_sequences_as_units_tell_no_less_than_fewer() -> None:
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(60, 400, generator=random) / 60**0.5
    inputs = torch.randn(1600, 60, generator=random)
    states = inputs @ mixing + 0.3 * torch.randn(1600, 400, generator=random)
    few, critical, many = (read_back(states[:count], inputs[:count]).capacity for count in (400, 800, 1600))
    assert few <= critical <= many and critical > 0.9 * many  # a small ridge for all fits noise where they are equal
    assert read_back(states[:800], inputs[:800], ridges=[1e-6]).capacity < few


def test_states_and_inputs_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"states=\(5, 2\), inputs=\(6, 1\)"):
        read_back(torch.rand(5, 2), torch.rand(6, 1))
