"""The GRU, through the framework's own cells (cuDNN on a GPU).

    r, z = sigma(W x_t + U h_{t-1} + b)         n = tanh(W x_t + b + r (U h_{t-1} + b_h))
    h_t = (1 - z) n + z h_{t-1}

The reset acts after the product, as in the framework; with one bias vector, as the paper's tables count, b_h = 0.
Source: Cho et al. 2014; chrono start: Tallec & Ollivier 2018.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wrnn.checks import one_of, whole_number
from wrnn.cores.base import LOOPS, Core, State
from wrnn.cores.lstm import keep_one_bias_
from wrnn.inits import chrono_

# B batch, T time, I input features, N units; gates in the order r, z, n


class GRU(Core):
    """A GRU layer.

    Args:
        input_size: I.
        hidden_size: N.
        biases: `one` or `two` vectors; the second starts at 0 and is learned.
        forget_bias: start of the bias of z, which keeps what was; None leaves it the framework's.
        chrono: start z so that units forget after 1 to `sequence_length` steps, spread evenly in the logarithm; all
            other biases start at 0.
        sequence_length: steps of the task's sequences; only `chrono` asks.
        recurrence: `reference` is the loop over `step`; any other word the framework's.

    All weights start at U(+- 1 / sqrt(N)). Raises: ValueError for a size or a choice that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        biases: str = "one",
        forget_bias: float | None = None,
        chrono: bool = False,
        sequence_length: int | None = None,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        one_of("model.core.biases", biases, ("one", "two"))
        self.recurrence = one_of("recurrence", recurrence, LOOPS)
        self.cells = nn.GRU(input_size, hidden_size, batch_first=True)
        keep_one_bias_(self.cells, biases == "two")
        bias = self.cells.all_weights[0][2].detach()
        _, keep, _ = bias.chunk(3)
        if forget_bias is not None:
            keep.fill_(forget_bias)
        if chrono:
            bias.zero_()
            chrono_(keep, sequence_length)

    def input_parameters(self) -> Iterable[nn.Parameter]:
        """W alone; see `Core`."""
        return self.cells.all_weights[0][:1]

    @property
    def output_size(self) -> int:
        """N."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """N."""
        return self.hidden_size

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence: zeros (B, N)."""
        return self.cells.all_weights[0][1].new_zeros(batch_size, self.hidden_size)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """One step: (B, I) and (B, N) -> outputs and state, both (B, N)."""
        assert isinstance(state, Tensor)
        input_weight, weight, input_bias, bias = self.cells.all_weights[0]
        driven, around = inputs @ input_weight.T + input_bias, state @ weight.T + bias
        (r, z, n), (r_h, z_h, n_h) = driven.chunk(3, dim=-1), around.chunk(3, dim=-1)
        z = torch.sigmoid(z + z_h)
        state_BN = (1 - z) * torch.tanh(n + torch.sigmoid(r + r_h) * n_h) + z * state
        return state_BN, state_BN

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, State]:
        """A whole sequence: inputs (B, T, I) -> (B, T, N), or (B, N) with `last_only`; and the last state (B, N)."""
        if self.recurrence == "reference":
            return super().forward(inputs, state, last_only=last_only)
        if state is None:
            state = self.initial_state(len(inputs))
        assert isinstance(state, Tensor)
        outputs, last = self.cells(inputs, state[None])
        return (last[0] if last_only else outputs), last[0]
