"""The LSTM, through the framework's own cells (cuDNN on a GPU).

    i, f, o = sigma(W x_t + U h_{t-1} + b)      g = tanh(W x_t + U h_{t-1} + b)
    c_t = f c_{t-1} + i g                       h_t = o tanh(c_t)

With one bias vector, as the paper's tables count; the framework's two add up to one.
Source: Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000; chrono start: Tallec & Ollivier 2018.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wrnn.checks import one_of, whole_number
from wrnn.cores.base import LOOPS, Core, State
from wrnn.inits import chrono_

# B batch, T time, I input features, N units; gates in the order i, f, g, o


class LSTM(Core):
    """An LSTM layer.

    Args:
        input_size: I.
        hidden_size: N.
        biases: `one` or `two` vectors; the second starts at 0 and is learned.
        forget_bias: start of the forget gate's bias, in all; None leaves it the framework's.
        chrono: start the gates so that units forget after 1 to `sequence_length` steps, spread evenly in the logarithm;
            all other biases start at 0.
        sequence_length: steps of the task's sequences; only `chrono` asks.
        recurrence: `reference` is the loop over `step`; any other word the framework's.

    All weights start at U(+- 1 / sqrt(N)). Raises: ValueError for a size or a choice that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        biases: str = "one",
        forget_bias: float | None = 1.0,
        chrono: bool = False,
        sequence_length: int | None = None,
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        one_of("model.core.biases", biases, ("one", "two"))
        self.recurrence = one_of("recurrence", recurrence, LOOPS)
        self.cells = nn.LSTM(input_size, hidden_size, batch_first=True)
        keep_one_bias_(self.cells, biases == "two")
        bias = self.cells.all_weights[0][2].detach()
        new, forget, _, _ = bias.chunk(4)
        if forget_bias is not None:
            forget.fill_(forget_bias)
        if chrono:
            bias.zero_()
            new.copy_(-chrono_(forget, sequence_length))

    def input_parameters(self) -> Iterable[nn.Parameter]:
        """W alone; see `Core`."""
        return self.cells.all_weights[0][:1]

    @property
    def output_size(self) -> int:
        """N."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """2N: h and c."""
        return 2 * self.hidden_size

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Silence: h and c, zeros (B, N)."""
        zeros = self.cells.all_weights[0][1].new_zeros(batch_size, self.hidden_size)
        return zeros, zeros

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step: (B, I) and (h, c), each (B, N) -> h and (h, c)."""
        h, c = state
        input_weight, weight, bias, more = self.cells.all_weights[0]
        gates = inputs @ input_weight.T + h @ weight.T + bias + more
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)

    def forward(self, inputs: Tensor, state: State | None = None, *, last_only: bool = False) -> tuple[Tensor, State]:
        """A whole sequence: inputs (B, T, I) -> (B, T, N), or (B, N) with `last_only`; and (h, c)."""
        if self.recurrence == "reference":
            return super().forward(inputs, state, last_only=last_only)
        h, c = self.initial_state(len(inputs)) if state is None else state
        outputs, (h, c) = self.cells(inputs, (h[None], c[None]))
        return (h[0] if last_only else outputs), (h[0], c[0])


def keep_one_bias_(cells: nn.RNNBase, second: bool) -> None:
    """Start the second bias vector at 0; without `second` it stays there and is no parameter."""
    zeros = torch.zeros_like(cells.all_weights[0][3].detach())
    if second:
        cells.bias_hh_l0 = nn.Parameter(zeros)
        return
    del cells.bias_hh_l0
    cells.register_buffer("bias_hh_l0", zeros)
    cells._init_flat_weights()  # the cells keep a list of their weights, in which the buffer takes the place
