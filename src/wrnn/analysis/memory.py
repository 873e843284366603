"""How far back a linear readout can read the input from a state."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wrnn.checks import whole_number
from wrnn.cores.base import Core

# M sequences, D numbers in a state, K targets, T time steps, I input features

# Ridge penalties that are tried, as parts of the mean variance of a direction.
_PENALTIES = (1e-10, 1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Memory:
    """What can be read back from a state.

    Attributes:
        delays: (T,), steps before the last input; 0 is the last.
        r2: (T,), share of the input's variance that a linear readout explains on sequences it was not fitted to, in
            [0, 1], the mean over input features.
        capacity: the sum of R^2 over delays and features, at most the size of the state (Jaeger's memory capacity).
        span: the largest delay up to which every R^2 is at least 0.5; -1 where not even the last input is.
    """

    delays: Tensor
    r2: Tensor
    capacity: float
    span: int


def read_back(states: Tensor, inputs: Tensor) -> Tensor:
    """R^2 of a linear readout of `inputs` from `states` on held-out rows: (M, D) and (M, K) -> (K,) in [0, 1].

    Ridge regression on the first 3/5 of the rows, its penalty chosen per target on the next 1/5, R^2 on the last; what
    is worse than the mean counts as 0. A target that does not vary has 0.

    Raises: ValueError for shapes that do not match, or fewer than 20 rows.
    """
    if states.ndim != 2 or inputs.ndim != 2 or len(states) != len(inputs):
        raise ValueError(
            f"states of shape {tuple(states.shape)}, inputs of shape {tuple(inputs.shape)}: must be (sequences,"
            " numbers) and (sequences, targets)"
        )
    if len(states) < 20:
        raise ValueError(f"states of {len(states)} sequences: must be at least 20")
    states, inputs = states.detach().double(), inputs.detach().double()
    if not torch.isfinite(states).all():
        raise ValueError("states: must be finite, some are not")
    fit, choose = 3 * len(states) // 5, 4 * len(states) // 5
    states = states - states[:fit].mean(0)
    states = states / states[:fit].square().sum().sqrt().clamp_min(1e-300)  # of mean variance 1 / rank below
    mean = inputs[:fit].mean(0)
    wanted = inputs - mean
    wide = states.shape[1] > fit  # then the products of sequences are the smaller matrix
    left, right = (states[:fit], states[:fit].T) if wide else (states[:fit].T, states[:fit])
    values, vectors = torch.linalg.eigh(left @ right)
    values = values.clamp_min(0)
    scale = values.sum().clamp_min(1e-300) / (values > 1e-12 * values.amax()).sum().clamp_min(1)
    source = wanted[:fit] if wide else states[:fit].T @ wanted[:fit]
    seen = states[fit:] @ states[:fit].T if wide else states[fit:]
    seen, source = seen @ vectors, vectors.T @ source
    best = torch.full_like(mean, -torch.inf)
    r2 = torch.zeros_like(mean)
    cut = choose - fit
    for penalty in _PENALTIES:
        error = (seen @ (source / (values + penalty * scale)[:, None]) - wanted[fit:]).square()
        chosen = -error[:cut].sum(0)
        better = chosen > best
        variance = (inputs[choose:] - inputs[choose:].mean(0)).square().sum(0)
        now = torch.where(variance > 0, 1 - error[cut:].sum(0) / variance.where(variance > 0, 1), 0)
        best, r2 = best.where(~better, chosen), r2.where(~better, now)
    return r2.clamp(0, 1)


def memory(states: Tensor, inputs: Tensor) -> Memory:
    """What states after the last step know of the steps before: states (M, D), inputs (M, T, I). See `read_back`."""
    if inputs.ndim != 3:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)}: must be (sequences, steps, features)")
    by_delay = inputs.flip(1)
    r2 = read_back(states, by_delay.flatten(1)).view(by_delay.shape[1:])
    mean = r2.mean(1)
    low = (mean < 0.5).nonzero()
    span = int(low[0]) - 1 if len(low) else len(mean) - 1
    return Memory(torch.arange(len(mean)), mean, float(r2.sum()), span)


@torch.no_grad()
def memory_span(
    core: Core, input_size: int = 1, steps: int | None = None, num_sequences: int | None = None, seed: int = 0
) -> Memory:
    """Drive a core with independent uniform inputs in [0, 1) and read them back from its last output.

    In [0, 1) and not around 0, since ReLU cores see images and symbols, which are not negative.

    Args:
        core: any; it is not changed.
        input_size: I, its input features, each with inputs of its own.
        steps: length of the sequences; None is the size of a ring, or the number of units without rings, at most 256.
        num_sequences: M; None is seven for each direction that inputs can give the state, from 500 to 3500. Fewer give
            an R^2 that is too low; the cost is that of M sequences and of min(M, D)^3.
        seed: of the inputs.

    Raises: ValueError. Source: Jaeger 2001.
    """
    whole_number("input_size", input_size)
    if steps is None:
        steps = min(core.ring_shape[1] if core.ring_shape else core.output_size, 256)
    whole_number("steps", steps)
    if num_sequences is None:
        num_sequences = min(max(7 * min(core.output_size, steps * input_size), 500), 3500)
    whole_number("num_sequences", num_sequences, minimum=20)
    like = next(iter([*core.parameters(), *core.buffers()]), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(num_sequences, steps, input_size, generator=generator).to(like.dtype)
    pieces = [core(piece.to(like.device), last_only=True)[0].cpu() for piece in inputs.split(250)]
    return memory(torch.cat(pieces), inputs)
