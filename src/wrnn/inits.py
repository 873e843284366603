"""Starts of the recurrence and of the input map: in-place initialisers, and the `Initializer` that applies one.

A recurrent weight is a ring kernel (C, C, K) or a dense matrix (N, N). An input weight is seen as (C, N, I).
C channels, N neurons per channel, I input features, K kernel taps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrnn.checks import one_of, whole_number, within


@dataclass(frozen=True)
class Initializer:
    """Start of one map: a function for its weight, a rule for its bias.

    Args:
        weight: changes the weight in place; None is the framework's default, U(-b, b) with b = 1 / sqrt(fan_in).
        bias: `zero`, or `pytorch` for the same U(-b, b).

    Raises: ValueError for another `bias`, and whatever the weight function raises when the start does not fit.
    """

    weight: Callable[[Tensor], Tensor] | None = None
    bias: str = "zero"

    def __post_init__(self) -> None:
        """Check the bias rule."""
        one_of("bias", self.bias, ("zero", "pytorch"))

    @torch.no_grad()
    def __call__(self, weight: Tensor, bias: Tensor, fan_in: int) -> None:
        """Initialise both in place. `fan_in`: how many numbers each output is a sum of."""
        bound = fan_in**-0.5
        if self.weight is None:
            nn.init.uniform_(weight, -bound, bound)
        else:
            self.weight(weight)
        if self.bias == "zero":
            nn.init.zeros_(bias)
        else:
            nn.init.uniform_(bias, -bound, bound)


def shift_(weight: Tensor, velocity: float = 1.0) -> Tensor:
    """Set a recurrent weight to a one-way wave: taps [0, 1 - velocity, velocity] in each channel, no mixing.

    Shape: ring kernel (C, C, K) with odd K >= 3, or dense (N, N); changed in place and returned.
    Direction: towards lower neuron indices. Range: velocity in [0, 1] neurons per time step; 1 is the exact shift.
    Raises: ValueError outside it, or where the kernel has no tap for a neighbour.
    Source: Keller et al. 2024, section 2 and appendix B; on a dense matrix the ablation's Sigma start.
    """
    within("init.weight.velocity", velocity, 0, 1)
    if weight.ndim == 3 and (weight.shape[-1] < 3 or weight.shape[-1] % 2 == 0):
        raise ValueError(
            f"init=shift: needs an odd kernel_size of at least 3, not {weight.shape[-1]}; use init=identity or pytorch"
        )
    nn.init.zeros_(weight)
    with torch.no_grad():
        if weight.ndim == 3:
            center = weight.shape[-1] // 2
            diagonal = torch.arange(weight.shape[0])
            weight[diagonal, diagonal, center] = 1 - velocity
            weight[diagonal, diagonal, center + 1] = velocity
        else:
            stay = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
            weight.copy_((1 - velocity) * stay + velocity * stay.roll(1, dims=1))
    return weight


def identity_(weight: Tensor) -> Tensor:
    """Set a recurrent weight to the identity: the matrix I, or the Dirac kernel. Activity stays where it is.

    Shape: (C, C, K) or (N, N); changed in place and returned. Source: Le et al. 2015.
    """
    return nn.init.dirac_(weight) if weight.ndim == 3 else nn.init.eye_(weight)


def ones_(weight: Tensor) -> Tensor:
    """Feed the sum of all inputs to neuron 0 of every channel; every other weight is 0.

    Shape: (C, N, I), changed in place and returned. A one-hot input therefore drives every channel by 1, whatever
    the symbol. Source: Keller et al. 2024, appendix B (there called a sparse identity).
    """
    nn.init.zeros_(weight)
    with torch.no_grad():
        weight[:, 0] = 1.0
    return weight


def source_identity_(weight: Tensor) -> Tensor:
    """Feed input j to neuron 0 of channel j mod C alone; every other weight is 0.

    Shape: (C, N, I), changed in place and returned. The single identity map of Keller et al. 2024, section 2, read to
    the letter; their code feeds the sum instead (`ones_`).
    """
    nn.init.zeros_(weight)
    feature = torch.arange(weight.shape[2])
    with torch.no_grad():
        weight[feature % weight.shape[0], 0, feature] = 1.0
    return weight


def normal_(weight: Tensor, std: float = 0.001) -> Tensor:
    """Draw every weight from N(0, std). Any shape, in place. Source: Le et al. 2015 for non-recurrent weights."""
    if std < 0:
        raise ValueError(f"input_init.weight.std={std!r}: must be a number of at least 0")
    return nn.init.normal_(weight, std=std)


@torch.no_grad()
def chrono_(bias: Tensor, sequence_length: int | None) -> Tensor:
    """Set the biases of gates that keep to log U(1, T - 1): units then forget after 1 to T steps.

    Shape: any, changed in place and returned. Raises: ValueError for T below 3. Source: Tallec & Ollivier 2018.
    """
    whole_number("model.core.chrono=true: sequence_length", sequence_length, minimum=3)
    assert sequence_length is not None
    return bias.uniform_(1, sequence_length - 1).log_()
