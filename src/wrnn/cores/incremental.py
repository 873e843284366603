"""The incremental RNN, approximately: a state that moves towards where increment and past state balance.

    g^0 = 0      g^{i+1} = g^i + eta_i [phi(U (g^i + h_{t-1}) + W x_t + b) - alpha (g^i + h_{t-1})]      h_t = g^K

At the balance g + h_{t-1} depends on x_t alone, so dh_t/dh_{t-1} = -I: nothing vanishes.
Approximate: the code that the authors name, TARNN, holds a later cell with gates. Low rank, U = U_1 U_2 and
W = W_1 W_2, is implied by the published count, and the ranks are ours; so are phi = tanh, eta = alpha = 1 and U = 0 at
the start, where one increment a step has that derivative exactly. From the framework's start the state grows
with the sequence, and psMNIST was not learned. Not the identity RNN, also called iRNN. Source: Kag et al. 2020.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import not_negative, one_of, whole_number
from wrnn.cores.base import LoopCore
from wrnn.recurrence import NONLINEARITIES

# B batch, I input features, N units, K increments a step


class IncrementalRNN(LoopCore):
    """An incremental layer.

    Args:
        input_size: I.
        hidden_size: N.
        num_increments: K.
        rank: of U; None is the full matrix.
        input_rank: of W; None is the full matrix.
        nonlinearity: relu, tanh or identity.
        recurrent_scale: U_1, or U of full rank, starts at this multiple of the framework's start, at least 0.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 128,
        num_increments: int = 1,
        rank: int | None = 22,
        input_rank: int | None = 22,
        nonlinearity: str = "tanh",
        recurrent_scale: float = 0.0,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        self.num_increments = whole_number("model.core.num_increments", num_increments)
        self.nonlinearity = one_of("model.core.nonlinearity", nonlinearity, NONLINEARITIES)
        self.input_map = _map(input_size, hidden_size, input_rank, "model.core.input_rank", bias=True)
        self.recurrent_map = _map(hidden_size, hidden_size, rank, "model.core.rank", bias=False)
        last = list(self.recurrent_map.parameters())[-1]
        last.detach().mul_(not_negative("model.core.recurrent_scale", recurrent_scale))
        self.eta = nn.Parameter(torch.ones(num_increments))
        self.alpha = nn.Parameter(torch.ones(()))

    def advance(self, drive: Tensor, state: Tensor, *matrices: Tensor) -> Tensor:
        """One step; see `LoopCore`."""
        increment = torch.zeros_like(state)
        for eta in self.eta.unbind():
            there = increment + state
            target = NONLINEARITIES[self.nonlinearity](self.recurrent_map(there) + drive)
            increment = increment + eta * (target - self.alpha * there)
        return increment


def _map(input_size: int, output_size: int, rank: int | None, name: str, bias: bool) -> nn.Module:
    if rank is None:
        return nn.Linear(input_size, output_size, bias=bias)
    whole_number(name, rank)
    if rank > output_size:
        raise ValueError(f"{name}={rank}: must be at most model.core.hidden_size={output_size}, or null for no limit")
    return nn.Sequential(nn.Linear(input_size, rank, bias=False), nn.Linear(rank, output_size, bias=bias))
