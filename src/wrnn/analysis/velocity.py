"""Velocities of waves on a ring, fitted in the space-time spectrum.

A wave at velocity v, in neurons per step towards lower indices, turns the phase of space frequency f by v f cycles a
step. The score of a velocity is the share of power that does so with one amplitude from the first step to the last; a
peak of it counts if it beats the same states with their steps shuffled. Space frequencies 0 and, of an even number of
neurons, 1/2 tell no velocity and are left out. What has one space frequency f looks alike at v and v + 1/f: the slowest
is taken.
Source: after Mahmoud et al. 1988 and Davis et al. 2021, as in Keller et al. 2024, Figures 2 and 10.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wrnn.analysis.spectrum import checked, window
from wrnn.checks import whole_number

# C channels, K space frequencies above 0, T steps, L padded steps, V candidate velocities

_PADDING = 4  # the transform over time is padded to that many times its length, so that peaks are not missed
_REMOVED = 4  # a wave that was found is removed with this many frequencies, 1 / T apart, on either side of its line
_MARGIN = 1.5  # by how much a score must beat shuffled states
_SAME = 0.5  # at what ratio of scores two opposite waves are one that stands
_ONE_WAY = 0.75  # of the power: what neither half of a standing wave has
_LEAST_SHARE = 0.05  # of the power: what a further wave must have
_UNCLEAR = 0.9  # at what ratio of scores something that moves would do as well as rest
_NOTHING = 1e-12  # of the power: what is left when all of it was taken out, or of states that are the same everywhere


@dataclass(frozen=True)
class Wave:
    """One wave.

    Attributes:
        velocity: neurons per step, positive towards lower indices; of a standing wave the size alone.
        uncertainty: standard error of the velocity of a wave that lasts. Of one that dies out within tens of neurons,
            under inputs that come again and again after as many steps, the velocity is off by up to a few percent,
            which the uncertainty does not tell; a share of a few percent is the sign.
        share: of the power that is coherent with it.
        stands: whether as much power moves the other way.
    """

    velocity: float
    uncertainty: float
    share: float
    stands: bool = False

    def describe(self) -> str:
        """In words."""
        what = "standing wave at " if self.stands else ""
        return f"{what}{self.velocity:.3f} ± {self.uncertainty:.3f} neurons/step ({100 * self.share:.0f} % of power)"


@dataclass(frozen=True)
class Waves:
    """What moves in a channel.

    Attributes:
        waves: those above chance, the strongest first.
        static_share: of the power that stays where it is.
        unclear_share: of it, what may as well rest as move: there are too few steps to tell.
    """

    waves: list[Wave] = field(default_factory=list)
    static_share: float = 0.0
    unclear_share: float = 0.0

    @property
    def lines(self) -> list[float]:
        """The velocities, those of standing waves both ways: the lines of a spectrum."""
        return [sign * wave.velocity for wave in self.waves for sign in ((1, -1) if wave.stands else (1,))]

    def describe(self) -> str:
        """In words; says so where nothing moves."""
        if self.waves:
            rest = [f"{100 * self.static_share:.0f} % at rest"] if self.static_share > self.waves[0].share else []
            return "; ".join([*(wave.describe() for wave in self.waves), *rest])
        if self.unclear_share >= 0.5:
            return "too short to tell a wave from rest"
        return "static: no wave" if self.static_share >= 0.5 else "no wave above chance"


def velocities(
    states: Tensor, max_velocity: float = 3.0, max_waves: int = 3, num_surrogates: int = 5, seed: int = 0
) -> Waves:
    """Waves in the states of a channel (N, T), or of several (C, N, T) whose scores are added up.

    Args:
        states: N neurons on a ring, T steps.
        max_velocity: the largest that is looked for, either way, in neurons per step.
        max_waves: how many to look for.
        num_surrogates: copies with shuffled steps that a wave must beat.
        seed: of the shuffles.

    Raises: ValueError for states that are too small or not finite, or ranges that are empty.
    """
    if max_velocity <= 0:
        raise ValueError(f"max_velocity={max_velocity}: must be above 0")
    whole_number("max_waves", max_waves)
    whole_number("num_surrogates", num_surrogates)
    states = checked(states)
    fit = _Fit(states[None] if states.ndim == 2 else states, max_velocity)
    if fit.power <= _NOTHING * fit.whole:
        return Waves()
    random = torch.Generator().manual_seed(seed)
    chance = max(float(fit.scores(fit.shuffled(random)).max()) for _ in range(num_surrogates))
    found: list[Wave] = []
    static_share = unclear_share = 0.0
    while len(found) < max_waves and fit.left() > _NOTHING:
        wave = fit.strongest()
        if wave.share < max(_MARGIN * chance, 1e-9) or (found and wave.share < _LEAST_SHARE):
            break
        if wave.stands and fit.blinks():
            static_share += wave.share
        elif abs(wave.velocity) < fit.slowest():
            if fit.rests(wave):
                static_share += wave.share
            else:
                unclear_share += wave.share
        else:
            found.append(wave)
        fit.remove(wave)
    return Waves(found, static_share, unclear_share)


def channel_velocities(states: Tensor, max_velocity: float = 3.0) -> tuple[list[Waves], Waves]:
    """Waves of each channel of (C, N, T), and of all together. Raises: as `velocities`."""
    if states.ndim != 3:
        raise ValueError(f"states={tuple(states.shape)}: must be (C, N, T)")
    return [velocities(channel, max_velocity) for channel in states], velocities(states, max_velocity)


class _Fit:
    """States in space frequencies, from which waves are taken one by one."""

    def __init__(self, states: Tensor, max_velocity: float) -> None:
        num_neurons, num_steps = states.shape[-2:]
        highest = (num_neurons - 1) // 2  # the frequency of alternating neurons, if any, does not tell directions
        modes_CNT = torch.fft.fft(states, dim=-2)
        self.modes_CKT = modes_CNT[:, 1 : highest + 1]
        self.frequency_K = torch.arange(1, highest + 1).double() / num_neurons
        self.num_steps = num_steps
        self.window = window(num_steps)
        self.power = float(self.window.sum() * (self.window * self.modes_CKT.abs().square()).sum())
        self.whole = float(self.window.sum() * (self.window * modes_CNT.abs().square()).sum())
        step = 0.25 / (num_steps * float(self.frequency_K[-1]))
        size = int(max_velocity / step)
        self.candidates = step * torch.arange(-size, size + 1).double()

    def slowest(self) -> float:
        """The velocity below which a wave cannot be told from slow changes at rest.

        That is a whole cycle from first to last step at the typical space frequency, three at the highest one.
        """
        return max(3 / float(self.frequency_K[-1]), 1 / self.typical_frequency()) / self.num_steps

    def rests(self, wave: Wave) -> bool:
        """Whether rest explains about as much of the power as this slow wave, and nothing that is fast enough does."""
        scores = self.scores(self.modes_CKT) / wave.share
        moving = scores[self.candidates.abs() >= self.slowest()].max()
        return bool(moving < _UNCLEAR <= scores[self.candidates.abs().argmin()])

    def left(self) -> float:
        """The share of the power that was not taken out."""
        return float(self.window.sum() * (self.window * self.modes_CKT.abs().square()).sum()) / self.power

    def blinks(self) -> bool:
        """Whether one pattern of several space frequencies comes and goes in place, which no standing wave does."""
        strengths = torch.linalg.svdvals(self.modes_CKT.flatten(0, 1)).square()
        return self.num_frequencies() > 1.5 and float(strengths[0] / strengths.sum()) > 0.9

    def num_frequencies(self) -> float:
        """On how many space frequencies the power is: their participation ratio."""
        power_K = self.modes_CKT.abs().square().sum((0, 2))
        return float(power_K.sum() ** 2 / power_K.square().sum())

    def typical_frequency(self) -> float:
        """Mean of the space frequencies, weighted by power."""
        weight_K = self.modes_CKT.abs().square().sum((0, 2))
        return float((weight_K * self.frequency_K).sum() / weight_K.sum())

    def shuffled(self, random: torch.Generator) -> Tensor:
        """What changes over time, with its steps in another order."""
        mean = (self.window * self.modes_CKT).sum(-1, keepdim=True) / self.window.sum()
        return (self.modes_CKT - mean)[..., torch.randperm(self.num_steps, generator=random)]

    def _spectrum_KL(self, modes_CKT: Tensor) -> Tensor:
        return torch.fft.fft(modes_CKT * self.window, n=_PADDING * self.num_steps).abs().square().sum(0)

    def scores(self, modes_CKT: Tensor) -> Tensor:
        """(V,): the share of power that is coherent with each candidate."""
        spectrum_KL = self._spectrum_KL(modes_CKT)
        length = spectrum_KL.shape[1]
        total = torch.zeros_like(self.candidates)
        for row_L, frequency in zip(spectrum_KL, self.frequency_K, strict=True):
            place = (self.candidates * frequency).remainder(1) * length
            below = place.long()
            part = place - below
            total += (1 - part) * row_L[below % length] + part * row_L[(below + 1) % length]
        return total / self.power

    def strongest(self) -> Wave:
        """The best candidate, refined within the width of its peak."""
        scores = self.scores(self.modes_CKT)
        best = float(self.candidates[int(scores.argmax())])
        if self.num_frequencies() < 1.1:
            best -= round(best * self.typical_frequency()) / self.typical_frequency()
        velocity, share = self._refined(best)
        opposite = (self.candidates + velocity).abs() <= 1.5 / (self.num_steps * float(self.frequency_K[-1]))
        both = share < _ONE_WAY and bool((scores[opposite] >= _SAME * share).any())
        stands = both and abs(velocity) >= self.slowest()
        return Wave(abs(velocity) if stands else velocity, self._uncertainty(velocity), share, stands)

    def _refined(self, velocity: float) -> tuple[float, float]:
        """The highest score near a candidate, without interpolation, and where it is."""
        reach = 0.4 / (self.num_steps * self.typical_frequency())
        steps = torch.arange(self.num_steps)
        share = 0.0
        for _ in range(4):
            tried = [velocity + reach * part / 4 for part in range(-4, 5)]
            scores = []
            for one in tried:
                turn_KT = torch.exp(-2j * torch.pi * one * self.frequency_K[:, None] * steps) * self.window
                scores.append(float((self.modes_CKT * turn_KT).sum(-1).abs().square().sum()) / self.power)
            share = max(scores)
            velocity = tried[scores.index(share)]
            reach /= 4
        return velocity, share

    def _uncertainty(self, velocity: float) -> float:
        """Standard error of the slope of the peaks, found near the line for each space frequency, against frequency."""
        spectrum_KL = self._spectrum_KL(self.modes_CKT)
        length = spectrum_KL.shape[1]
        reach = torch.arange(-2 * _PADDING, 2 * _PADDING + 1)
        place_K = (self.frequency_K * velocity * length).round().long()
        near = spectrum_KL.gather(1, (place_K[:, None] + reach) % length)
        peak = near.argmax(1)
        weight = near.gather(1, peak[:, None])[:, 0]
        residual = (place_K + reach[peak]).double() / length - velocity * self.frequency_K
        leverage = float((weight * self.frequency_K.square()).sum())
        if leverage == 0:
            return float("inf")
        error = float((weight * self.frequency_K * residual).square().sum().sqrt()) / leverage
        typical = (leverage / float(weight.sum())) ** 0.5
        return float((error**2 + (0.05 / (self.num_steps * typical)) ** 2) ** 0.5)

    def remove(self, wave: Wave) -> None:
        """Take a wave, and what is too near to it to be another, out of the states; a standing one both ways."""
        steps = torch.arange(self.num_steps)
        near = torch.fft.fftfreq(self.num_steps).abs() <= (_REMOVED + 0.5) / self.num_steps
        for velocity in (wave.velocity, -wave.velocity) if wave.stands else (wave.velocity,):
            turn = torch.exp(2j * torch.pi * velocity * self.frequency_K[:, None] * steps)
            still = torch.fft.fft(self.modes_CKT * turn.conj())
            still[..., near] = 0
            self.modes_CKT = torch.fft.ifft(still) * turn
