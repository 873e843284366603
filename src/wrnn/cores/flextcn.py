"""FlexTCN: causal convolutions as long as the sequence, whose kernels are functions of position under a learned window.

    block: x -> ReLU(skip(x) + f(f(x)))        f: FlexConv, BatchNorm, ReLU, dropout
    FlexConv kernel at p in [-1, 1]: psi(p) exp(-(p - mu)^2 / 2 sigma^2); p = 1 is the current step
    psi: e_0 = g_0, e_l = g_l (A_l e_{l-1} + a_l), A e + a
    g_l(p) = exp(-(gamma_l (p - mu_l))^2 / 2) sin(w_l p + b_l)

Where the window is below 0.1 the kernel is cut off. Not recurrent: the reference of the paper's Table 2 for what a
whole sequence at once is worth.
Source: Romero et al. 2022 and their released code; settings of its sequence tasks are known from its tests only.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.checks import share, whole_number
from wrnn.cores.base import ParameterGroup, State, WholeSequenceCore

# B batch, T time, I input features, W width, H hidden units of the kernel's network, P positions

CUT = 0.1
"""The window's value below which a kernel is cut off."""


class FlexTCN(WholeSequenceCore):
    """A stack of residual blocks.

    Args:
        input_size: I.
        hidden_size: W, features of every block.
        num_blocks: how many.
        kernel_hidden_size: H.
        kernel_layers: multiplicative layers after the first filter.
        dropout: in [0, 1).
        frequency: scale of w; the released code's omega_0 for these tasks.

    Raises: ValueError for a size that makes no sense.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 30,
        num_blocks: int = 6,
        kernel_hidden_size: int = 32,
        kernel_layers: int = 3,
        dropout: float = 0.1,
        frequency: float = 25.6,
    ) -> None:
        super().__init__()
        whole_number("input_size", input_size)
        self.hidden_size = whole_number("model.core.hidden_size", hidden_size)
        whole_number("model.core.num_blocks", num_blocks)
        whole_number("model.core.kernel_hidden_size", kernel_hidden_size)
        whole_number("model.core.kernel_layers", kernel_layers)
        share("model.core.dropout", dropout)
        kernel = (kernel_hidden_size, kernel_layers, frequency)
        sizes = [input_size] + [hidden_size] * (num_blocks - 1)
        self.blocks = nn.Sequential(*(_Block(size, hidden_size, kernel, dropout) for size in sizes))

    def parameter_groups(self) -> list[ParameterGroup]:
        """The windows learn ten times more slowly and never decay."""
        windows = tuple(module.window for module in self.modules() if isinstance(module, FlexConv))
        return [ParameterGroup(windows, 0.1, weight_decay=0.0)]

    @property
    def is_deterministic(self) -> bool:
        """False: it is normalised over the batch."""
        return False

    @property
    def output_size(self) -> int:
        """W."""
        return self.hidden_size

    def forward(
        self, inputs: Tensor, state: State | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A whole sequence: inputs (B, T, I) -> (B, T, W), or (B, W) with `last_only`; and no state."""
        features_BTW: Tensor = self.blocks(inputs.transpose(1, 2)).transpose(1, 2)
        return (features_BTW[:, -1] if last_only else features_BTW), ()


class _Block(nn.Module):
    def __init__(self, input_size: int, size: int, kernel: tuple[int, int, float], dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FlexConv(input_size, size, *kernel), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(dropout),
            FlexConv(size, size, *kernel), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.skip = nn.Identity() if input_size == size else nn.Conv1d(input_size, size, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.skip(features) + self.layers(features))


class FlexConv(nn.Module):
    """A causal convolution with a kernel of any length: (B, I, T) -> (B, O, T).

    Args:
        input_size, output_size: I, O.
        hidden_size, num_layers: of the network that makes the kernel.
        frequency: scale of its sines.
    """

    def __init__(self, input_size: int, output_size: int, hidden_size: int, num_layers: int, frequency: float) -> None:
        super().__init__()
        self.sizes = output_size, input_size
        self.filters = nn.ModuleList(
            _Gabor(hidden_size, layer, frequency / math.sqrt(num_layers + 1)) for layer in range(num_layers + 1)
        )
        self.mixes = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers))
        self.out = nn.Linear(hidden_size, input_size * output_size)
        self.bias = nn.Parameter(torch.zeros(output_size))
        self.window = nn.Parameter(torch.tensor([1.0, 0.075]))  # mu, sigma

    def kernel(self, steps: int) -> Tensor:
        """(O, I, T), the current step last, 0 where it is cut off."""
        position_P1 = torch.linspace(-1, 1, steps, dtype=self.bias.dtype, device=self.bias.device)[:, None]
        if steps == 1:
            position_P1 = torch.ones_like(position_P1)
        center, width = self.window
        kept = position_P1[:, 0] > center.detach() - width.detach().abs() * math.sqrt(-2 * math.log(CUT))
        position_P1 = position_P1[kept]
        made_PH = self.filters[0](position_P1)
        for mix, gabor in zip(self.mixes, list(self.filters)[1:], strict=True):
            made_PH = gabor(position_P1) * mix(made_PH)
        window_P1 = torch.exp(-0.5 * ((position_P1 - center) / width).square())
        values: Any = (self.out(made_PH) * window_P1).T.unflatten(0, self.sizes)
        return F.pad(values, (steps - values.shape[-1], 0))

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        steps = features.shape[-1]
        kernel_OIT = self.kernel(steps).flip(-1)
        spectrum = torch.einsum(
            "bif,oif->bof", torch.fft.rfft(features, 2 * steps), torch.fft.rfft(kernel_OIT, 2 * steps)
        )
        return torch.fft.irfft(spectrum, 2 * steps)[..., :steps] + self.bias[:, None]


class _Gabor(nn.Module):
    """g of the module's docstring: (P, 1) -> (P, H)."""

    def __init__(self, size: int, layer: int, frequency: float) -> None:
        super().__init__()
        shape = torch.full((size,), 6 / (layer + 1))
        self.scale = nn.Parameter(torch.distributions.Gamma(shape, 1.0).sample())
        self.center = nn.Parameter(torch.empty(size).uniform_(-0.125, 0.125))
        self.weight = nn.Parameter(torch.empty(size).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(size).uniform_(-math.pi, math.pi))
        with torch.no_grad():
            self.weight.mul_(self.scale * frequency)

    def forward(self, position: Tensor) -> Tensor:
        envelope = torch.exp(-0.5 * (self.scale * (position - self.center)).square())
        return envelope * torch.sin(self.weight * position + self.bias)
