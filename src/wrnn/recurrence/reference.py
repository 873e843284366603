"""The readable loop under ordinary autograd: any dtype, any device, any number of derivatives.

B batch, T time, I input features, C channels, N neurons per ring, O outputs of a readout.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def run(
    inputs: Tensor,
    input_weight: Tensor | None,
    bias: Tensor,
    kernel: Tensor,
    state: Tensor,
    readout: Tensor | None,
    nonlinearity: str,
    wants: str,
) -> tuple[Tensor, Tensor | None]:
    """Take checked tensors of one dtype; return the last state and what is wanted of every step."""
    phi, half = NONLINEARITIES[nonlinearity], kernel.shape[-1] // 2
    every_step = []
    for input_BI in inputs.unbind(1):  # B is 1 where all sequences share their inputs
        if input_weight is None:
            drive_BCN = input_BI.unflatten(-1, bias.shape)
        else:
            drive_BCN = F.linear(input_BI, input_weight.flatten(0, 1)).unflatten(-1, bias.shape)
        state = phi(F.conv1d(F.pad(state, (half, half), mode="circular"), kernel) + drive_BCN + bias)
        if wants == "states":
            every_step.append(state)
        elif readout is not None:
            every_step.append(F.linear(state.flatten(1), readout.flatten(1)))
    return state, torch.stack(every_step, dim=1) if every_step else None
