"""The memory span of a core: how well its state tells the inputs of the past, read out linearly.

Source: the short-term memory capacity of Jaeger 2001.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wrnn.checks import whole_number
from wrnn.cores.base import Core, evaluated

RIDGES = tuple(10.0**power for power in range(-10, 1))


@dataclass(frozen=True)
class MemorySpan:
    """What a state knows of each past input.

    Attributes:
        r2: (K,) share of the variance of the input k steps ago that a linear readout recovers on sequences it was not
            fitted on; below 0 where it does worse than the mean.
    """

    r2: Tensor

    @property
    def capacity(self) -> float:
        """Sum of the shares above 0: the number of inputs that are remembered."""
        return float(self.r2.clamp(min=0).sum())

    @property
    def span(self) -> int:
        """How many steps back the share is at least 0.5 without a gap."""
        short = (~(self.r2 >= 0.5)).nonzero()
        return int(short[0]) if len(short) else len(self.r2)


def read_back(states: Tensor, inputs: Tensor, ridges: Sequence[float] = RIDGES) -> MemorySpan:
    """Fit a linear readout of past inputs on half of the sequences, and test it on the other half.

    Args:
        states: (M, D), the state of M sequences at the same time.
        inputs: (M, K), what came in k = 0 .. K-1 steps before.
        ridges: penalties on the readout, as parts of the states' mean power. The one is taken that tells each sequence
            of the first half best from the others of that half. A penalty given once for all would be too small where
            there are about as many sequences as independent units, and too large elsewhere.

    Raises: ValueError where the two do not belong together, there are fewer than 4 sequences, or an input is the same
        in all of those that test.
    """
    if states.ndim != 2 or inputs.ndim != 2 or len(states) != len(inputs) or len(states) < 4:
        shapes = f"states={tuple(states.shape)}, inputs={tuple(inputs.shape)}"
        raise ValueError(f"{shapes}: must be (M, D) and (M, K) with M of at least 4")
    states, inputs = states.detach().cpu().double(), inputs.detach().cpu().double()
    half = len(states) // 2
    mean, target_mean = states[:half].mean(0), inputs[:half].mean(0)
    known, wanted = states[:half] - mean, inputs[:half] - target_mean
    weights = _ridge(known @ known.T, wanted, ridges)
    told = (states[half:] - mean) @ (known.T @ weights)
    truth = inputs[half:] - target_mean
    variance = truth.var(0, correction=0)
    if not variance.all():
        step = int((variance == 0).nonzero()[0])
        raise ValueError(f"inputs: that of {step} steps ago is the same in the second half of the sequences; must vary")
    return MemorySpan(1 - (told - truth).square().mean(0) / variance)


def _ridge(kernel: Tensor, wanted: Tensor, ridges: Sequence[float]) -> Tensor:
    """Weights of each sequence, with the ridge of the smallest squared error of leaving one sequence out.

    The mean is no part of the readout, as both were centred: what all sequences have in common is made the largest
    mode, and left out.
    """
    total = float(kernel.trace())
    power, modes = torch.linalg.eigh(kernel + 2 * total / len(kernel))
    projected, squares = modes.T @ wanted, modes.square()

    def fit(ridge: float) -> tuple[float, Tensor]:
        shrunk = 1 / (power.clamp(min=0) + ridge * total / len(kernel) + 1e-30)
        shrunk[-1] = 0
        weights = modes @ (shrunk[:, None] * projected)
        return float((weights / (squares @ shrunk)[:, None]).square().sum()), weights

    return min(map(fit, ridges), key=lambda fitted: fitted[0])[1]


@torch.no_grad()
def memory_span(
    core: Core, input_size: int, num_steps: int = 200, num_sequences: int = 2000, seed: int = 0
) -> MemorySpan:
    """Memory span of a core at the end of random sequences: numbers drawn from [0, 1], the same in every feature.

    Args:
        core: any core; its output is what is read.
        input_size: I; each feature gets the number divided by I, so that their sum is the number.
        num_steps: length of the sequences, and of the past that is asked for.
        num_sequences: half of them fit the readout. With few the shares are too low: take more until they stay. Where
            inputs lie on top of each other many times the number of units that differ are needed.
        seed: of the numbers.

    Raises: ValueError for a size that makes no sense.
    """
    for name, value in (("input_size", input_size), ("num_steps", num_steps), ("num_sequences", num_sequences)):
        whole_number(name, value)
    numbers = torch.rand(num_sequences, num_steps, generator=torch.Generator().manual_seed(seed))
    with evaluated(core) as like:
        states = [
            core((part[..., None].expand(-1, -1, input_size) / input_size).to(like), last_only=True)[0].cpu()
            for part in numbers.split(100)
        ]
    return read_back(torch.cat(states), numbers.flip(1))
