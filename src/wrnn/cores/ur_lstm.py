"""The UR-LSTM: an LSTM with a refined forget gate, tied to its input gate, that starts spread over all time scales.

    f = sigma(P_f + b)        r = sigma(P_r - b)        g = 2 r f + (1 - 2 r) f^2
    c_t = g c_{t-1} + (1 - g) tanh(P_c)                 h_t = sigma(P_o) tanh(c_t)

P: affine maps of x_t and h_{t-1}; b = logit(u), u ~ U(1/N, 1 - 1/N). The refine gate moves f up to 1 - (1 - f)^2
(r = 1) or down to f^2 (r = 0), so that a gate that has saturated still learns.
Source: Gu et al. 2020, equations and start of b. The start of the weights, U(+- 1 / sqrt(N)), is not confirmed: no
training code is released.
"""

import torch
from torch import Tensor, nn

from wrnn.checks import one_of, whole_number
from wrnn.cores.base import LoopCore

# B batch, I input features, N units; gates in the order f, r, c, o


class URLSTM(LoopCore):
    """A UR-LSTM layer.

    Args:
        input_size: I.
        hidden_size: N, at least 3 so that 1/N < 1 - 1/N.
        refine: whether there is a refine gate; without it g = f.
        refine_bias: `minus` starts the refine gate at -b, as the equations say; `none` at 0, as the authors' later code
            does.
        recurrence: see `wrnn.cores.base.LOOPS`.

    Raises: ValueError for a size or a choice that makes no sense.
    """

    num_states = 2  # h and c

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 1024,
        refine: bool = True,
        refine_bias: str = "minus",
        recurrence: str = "auto",
    ) -> None:
        super().__init__()
        self.use(recurrence)
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size, minimum=3)
        self.refine = refine
        one_of("model.core.refine_bias", refine_bias, ("minus", "none"))
        num_gates = 4 if refine else 3
        self.input_map = nn.Linear(input_size, num_gates * hidden_size)
        self.weight = nn.Parameter(torch.empty(num_gates * hidden_size, hidden_size))
        bound = hidden_size**-0.5
        nn.init.uniform_(self.input_map.weight, -bound, bound)
        nn.init.uniform_(self.weight, -bound, bound)
        with torch.no_grad():
            spread = torch.empty(hidden_size).uniform_(1 / hidden_size, 1 - 1 / hidden_size).logit()
            self.input_map.bias.zero_()
            self.input_map.bias[:hidden_size] = spread
            if refine and refine_bias == "minus":
                self.input_map.bias[hidden_size : 2 * hidden_size] = -spread

    def advance(self, drive: Tensor, state: tuple[Tensor, Tensor], *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """One step; see `LoopCore`."""
        h, c = state
        first, *refine, candidate, output = torch.addmm(drive, h, self.weight.T).split(self.hidden_size, dim=-1)
        gate = torch.sigmoid(first)
        if refine:
            gate = refined(gate, torch.sigmoid(refine[0]))
        c = gate * c + (1 - gate) * torch.tanh(candidate)
        h = torch.sigmoid(output) * torch.tanh(c)
        return h, c


def refined(f: Tensor, r: Tensor) -> Tensor:
    """The effective gate, in [f^2, 1 - (1 - f)^2]; r = 1/2 leaves f. Any shape."""
    return 2 * r * f + (1 - 2 * r) * f.square()
