"""Space-time spectra of states on a ring, and how much of their power moves at one velocity.

N neurons of a channel, T time steps. Throughout the analysis a velocity is positive towards lower neuron indices, the
direction of the paper's start: h(x, t) = f(x + v t). Such a wave has its power on the line
time frequency = v * space frequency, in cycles per step and cycles per neuron.
Source: Davis et al. 2021 as used by Keller et al. 2024, section 2 and appendix B, Figure 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wrnn.checks import one_of, whole_number

NORMALIZATIONS = ("raw", "shuffled", "time_shuffled")


@dataclass(frozen=True)
class Spectrum:
    """Magnitudes of a two-dimensional Fourier transform, zero frequency in the middle.

    Attributes:
        magnitude: (..., N, T).
        space_frequency: (N,) in cycles per neuron, in [-0.5, 0.5).
        time_frequency: (T,) in cycles per step, in [-0.5, 0.5).
        unit: of the magnitude, `magnitude` or `ratio to shuffled`.
    """

    magnitude: Tensor
    space_frequency: Tensor
    time_frequency: Tensor
    unit: str = "magnitude"


def spectrum(states: Tensor, normalize: str = "raw", num_shuffles: int = 10, seed: int = 0) -> Spectrum:
    """Spectrum of states (..., N, T), in float64.

    Args:
        states: of one channel (N, T), or of several.
        normalize: `raw`; `shuffled` divides by the mean spectrum of copies whose neurons and steps are shuffled, as the
            paper says; `time_shuffled` by that of copies whose steps alone are shuffled, as its code does, where the
            shuffle in space permutes an axis of size 1.
        num_shuffles: how many copies.
        seed: of the shuffles.

    Raises: ValueError for another normalisation or no copy. A frequency at which the copies have nothing is left as
    it is.
    """
    one_of("normalize", normalize, NORMALIZATIONS)
    whole_number("num_shuffles", num_shuffles)
    states = checked(states)
    magnitude = _magnitude(states)
    if normalize != "raw":
        random = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(magnitude)
        for _ in range(num_shuffles):
            copy = states[..., torch.randperm(states.shape[-1], generator=random)]
            if normalize == "shuffled":
                copy = copy[..., torch.randperm(states.shape[-2], generator=random), :]
            total += _magnitude(copy)
        mean = total / num_shuffles
        magnitude = magnitude / mean.where(mean > 1e-9 * mean.amax((-2, -1), keepdim=True), torch.ones(()).double())
    num_neurons, num_steps = states.shape[-2:]
    space, time = (torch.fft.fftfreq(length, dtype=torch.float64) for length in (num_neurons, num_steps))
    shifted = torch.fft.fftshift(magnitude, dim=(-2, -1))
    unit = "magnitude" if normalize == "raw" else "ratio to shuffled"
    return Spectrum(shifted, torch.fft.fftshift(space), torch.fft.fftshift(time), unit)


def _magnitude(states: Tensor) -> Tensor:
    return torch.fft.fft2(states).abs()


def share_on_line(states: Tensor, velocity: float, half_width: float = 2.0) -> float:
    """Share of the power that moves at a velocity: 1 for an exact wave, about 2 half_width / T for white noise.

    Power with space frequency 0 belongs to no velocity and is left out. A Hann window over time keeps the ends of the
    sequence from spilling over the other frequencies.

    Args:
        states: (N, T).
        velocity: neurons per step towards lower indices.
        half_width: of the line, in steps of 1 / T cycles per step; 2 is what the window widens an exact wave to.

    Range: [0, 1]; 0 for states that are silent or the same at all neurons.
    """
    states = checked(states)
    num_neurons, num_steps = states.shape[-2:]
    power = torch.fft.fft2(states * window(num_steps)).abs().square()
    space = torch.fft.fftfreq(num_neurons, dtype=torch.float64)[:, None]
    off = torch.fft.fftfreq(num_steps, dtype=torch.float64) - velocity * space
    on_line = (off - off.round()).abs() <= (half_width + 1e-6) / num_steps
    moving = power[..., 1:, :]
    total = float(moving.sum())
    return float((moving * on_line[1:]).sum()) / total if total > 1e-20 * float(power.sum()) else 0.0


def window(num_steps: int) -> Tensor:
    """Hann window (T,), nowhere 0."""
    return torch.hann_window(num_steps + 2, periodic=False, dtype=torch.float64)[1:-1]


def checked(states: Tensor) -> Tensor:
    """States as float64. Raises: ValueError for fewer than 3 neurons or 4 steps, or values that are not finite."""
    if states.ndim < 2 or states.shape[-2] < 3 or states.shape[-1] < 4:
        raise ValueError(f"states={tuple(states.shape)}: must be (..., N, T) with N of at least 3 and T of at least 4")
    if not torch.isfinite(states).all():
        raise ValueError("states: must be finite")
    return states.detach().cpu().double()
