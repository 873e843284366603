"""One step of each core from a random state, against its equation written out; the rest follows from the contract."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wrnn.cores.antisymmetric import AntisymmetricRNN
from wrnn.cores.base import Core
from wrnn.cores.cornn import CoupledOscillators
from wrnn.cores.exprnn import ExponentialRNN
from wrnn.cores.flextcn import FlexConv
from wrnn.cores.incremental import IncrementalRNN
from wrnn.cores.indrnn import IndependentRNN
from wrnn.cores.lem import LongExpressiveMemory
from wrnn.cores.lipschitz import LipschitzRNN
from wrnn.cores.lru import LinearRecurrentUnit
from wrnn.cores.mingru import MinimalGRU
from wrnn.cores.s4d import DiagonalStateSpace
from wrnn.cores.stack import Layer
from wrnn.cores.unicornn import UndampedOscillators
from wrnn.cores.ur_lstm import URLSTM
from wrnn.cores.urnn import UnitaryRNN

N, INPUT = 5, 3
sigma, tanh = torch.sigmoid, torch.tanh


def antisymmetric(core: AntisymmetricRNN, x: Tensor, h: Tensor) -> Tensor:
    w = torch.zeros(N, N, dtype=x.dtype)
    w[torch.ones(N, N).triu(1).bool()] = core.upper
    a = w - w.T - 0.2 * torch.eye(N)
    v, v_z = core.input_map.weight.split(N)
    b, b_z = core.input_map.bias.split(N)
    return h + 0.1 * sigma(h @ a.T + x @ v_z.T + b_z) * tanh(h @ a.T + x @ v.T + b)


def lipschitz(core: LipschitzRNN, x: Tensor, h: Tensor) -> Tensor:
    def mixed(m: Tensor) -> Tensor:
        return 0.7 * (m - m.T) + 0.3 * (m + m.T) - 0.1 * torch.eye(N)

    e, e_z = core.input_map.weight.split(N)
    b, b_z = core.input_map.bias.split(N)
    a, w = mixed(core.linear), mixed(core.weight)
    return h + 0.3 * (h @ a.T + tanh(h @ w.T + x @ e.T + b)) * sigma(h @ w.T + x @ e_z.T + b_z)


def cornn(core: CoupledOscillators, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
    y, z = state
    w, w_z = core.weight.split(N, dim=1)
    z = z + 0.2 * (tanh(y @ w.T + z @ w_z.T + core.input_map(x)) - 1.5 * y - 0.7 * z)
    return y + 0.2 * z


def lem(core: LongExpressiveMemory, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
    y, z = state
    v1, v2, v_z, v_y = core.input_map.weight.split(N)
    b1, b2, b_z, b_y = core.input_map.bias.split(N)
    w1, w2, w_z = core.weight_from_y.split(N)
    d_y, d_z = 0.4 * sigma(y @ w1.T + x @ v1.T + b1), 0.4 * sigma(y @ w2.T + x @ v2.T + b2)
    z = (1 - d_z) * z + d_z * tanh(y @ w_z.T + x @ v_z.T + b_z)
    return (1 - d_y) * y + d_y * tanh(z @ core.weight_from_z.T + x @ v_y.T + b_y)


def ur_lstm(core: URLSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
    h, c = state
    f, r, candidate, o = (core.input_map(x) + h @ core.weight.T).split(N, dim=1)
    f, r = sigma(f), sigma(r)
    g = 2 * r * f + (1 - 2 * r) * f**2
    return sigma(o) * tanh(g * c + (1 - g) * tanh(candidate))


def exprnn(core: ExponentialRNN, x: Tensor, h: Tensor) -> Tensor:
    a = torch.zeros(N, N, dtype=x.dtype)
    a[torch.ones(N, N).triu(1).bool()] = core.upper
    z = h @ torch.matrix_exp(a - a.T).T + x @ core.input_map.weight.T
    return z.sign() * (z.abs() + core.bias).clamp(min=0)


def urnn(core: UnitaryRNN, x: Tensor, h: Tensor) -> Tensor:
    f = torch.fft.fft(torch.eye(N, dtype=h.dtype), norm="ortho")
    d = [torch.diag(torch.exp(1j * phase)) for phase in core.phases]
    v = [torch.complex(*parts)[:, None] for parts in core.reflections]
    r = [torch.eye(N) - 2 * one @ one.conj().T / one.abs().square().sum() for one in v]
    p = torch.eye(N, dtype=h.dtype)[core.permutation]
    w = d[2] @ r[1] @ f.conj().T @ d[1] @ p @ r[0] @ f @ d[0]
    real, imaginary = (x @ core.input_map.weight.T).split(N, dim=1)
    z = h @ w.T + torch.complex(real, imaginary)
    z = z * (z.abs() + core.bias).clamp(min=0) / (z.abs() + 1e-5)
    return torch.cat([z.real, z.imag], dim=1)


def incremental(core: IncrementalRNN, x: Tensor, h: Tensor) -> Tensor:
    g = torch.zeros_like(h)
    for eta in core.eta:
        g = g + eta * (tanh(core.recurrent_map(g + h) + core.input_map(x)) - core.alpha * (g + h))
    return g


def indrnn(core: IndependentRNN, x: Tensor, state: tuple[Tensor]) -> Tensor:
    h = (core.maps[0](x) + core.weights[0] * state[0]).clamp(min=0)
    return core.norms[0](h)


def unicornn(core: UndampedOscillators, x: Tensor, state: tuple[Tensor]) -> Tensor:
    y, z = state[0].unbind(1)
    step = 0.3 * sigma(core.kappas[0])
    z = z - step * (tanh(core.weights[0] * y + core.maps[0](x)) + 2.5 * y)
    return y + step * z


EQUATIONS: dict[str, tuple[Callable[[], Core], Callable[..., Tensor]]] = {
    "antisymmetric": (lambda: AntisymmetricRNN(INPUT, N, True, step_size=0.1, diffusion=0.2), antisymmetric),
    "lipschitz": (lambda: LipschitzRNN(INPUT, N, True, step_size=0.3, beta=0.7, gamma=0.1, weight_scale=2), lipschitz),
    "cornn": (lambda: CoupledOscillators(INPUT, N, 0.2, gamma=1.5, epsilon=0.7), cornn),
    "lem": (lambda: LongExpressiveMemory(INPUT, N, 0.4), lem),
    "ur_lstm": (lambda: URLSTM(INPUT, N), ur_lstm),
    "exprnn": (lambda: ExponentialRNN(INPUT, N), exprnn),
    "urnn": (lambda: UnitaryRNN(INPUT, N), urnn),
    "incremental": (lambda: IncrementalRNN(INPUT, N, 3, rank=2, input_rank=2, recurrent_scale=1.0), incremental),
    "indrnn": (lambda: IndependentRNN(INPUT, 10, N, num_layers=1), indrnn),
    "unicornn": (lambda: UndampedOscillators(INPUT, N, num_layers=1, time_step=0.3, alpha=2.5), unicornn),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_step_is_the_equation(name: str) -> None:
    torch.manual_seed(0)
    make, equation = EQUATIONS[name]
    core = make().double().eval()
    with torch.no_grad():
        for weight in core.parameters():
            weight += 0.3 * torch.randn_like(weight)
    start = core.initial_state(2)
    if isinstance(start, tuple):
        start = tuple(part + torch.randn_like(part) for part in start)
    else:
        start = start + torch.randn_like(start)
    x = torch.randn(2, INPUT, dtype=torch.float64)
    torch.testing.assert_close(core.step(x, start)[0], equation(core, x, start))


def lru(layer: LinearRecurrentUnit, u: Tensor, h: Tensor) -> Tensor:
    turn = torch.exp(torch.complex(-layer.nu.exp(), layer.theta.exp()))
    h = turn * h + layer.gamma.exp() * (u.to(h.dtype) @ torch.complex(*layer.inner).T)
    return (h @ torch.complex(*layer.outer).T).real + layer.skip * u


def s4d(layer: DiagonalStateSpace, u: Tensor, s: Tensor) -> Tensor:
    a, delta = torch.complex(-layer.log_decay.exp(), layer.frequency), layer.log_step.exp()[:, None]
    held = (torch.exp(delta * a) - 1) / a
    # the state is kept before the input's factor; C carries it
    s = torch.exp(delta * a) * (held * s) + held * u[..., None]
    return 2 * (torch.complex(*layer.outer) * s).sum(-1).real + layer.skip * u


def mingru(layer: MinimalGRU, u: Tensor, h: Tensor) -> Tensor:
    gate, v = (u @ layer.gates.weight.T).split(N, dim=1)
    candidate = torch.where(v >= 0, v + 0.5, sigma(v))
    return (1 - sigma(gate)) * h + sigma(gate) * candidate


@pytest.mark.parametrize(
    ("layer", "equation"), [(LinearRecurrentUnit(N, 4), lru), (DiagonalStateSpace(N, 6), s4d), (MinimalGRU(N), mingru)]
)
def test_a_step_of_a_layer_is_the_equation(layer: Layer, equation: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight += 0.3 * torch.randn_like(weight)
    state = layer.initial_state(2)
    state, u = state + torch.randn_like(state), torch.randn(2, N, dtype=torch.float64)
    torch.testing.assert_close(layer.step(u, state)[0], equation(layer, u, state))


def test_a_long_kernel_reads_the_current_step_last() -> None:
    torch.manual_seed(0)
    conv = FlexConv(2, 3, hidden_size=4, num_layers=1, frequency=25.6).double()
    nn.init.constant_(conv.bias, 0.25)
    x = torch.randn(1, 2, 12, dtype=torch.float64)
    kernel = conv.kernel(12)
    expected = torch.nn.functional.conv1d(torch.nn.functional.pad(x, (11, 0)), kernel, conv.bias)
    torch.testing.assert_close(conv(x), expected)
    p = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]

    def gabor(layer: nn.Module) -> Tensor:
        return torch.exp(-0.5 * (layer.scale * (p - layer.center)) ** 2) * torch.sin(layer.weight * p + layer.bias)

    first, second = conv.filters
    psi = conv.out(gabor(second) * conv.mixes[0](gabor(first)))
    window = torch.exp(-0.5 * (p - 1.0) ** 2 / 0.075**2)
    whole = (psi * torch.where(window > 0.1, window, 0.0)).T.unflatten(0, (3, 2))
    torch.testing.assert_close(kernel, whole, rtol=1e-6, atol=1e-7)  # mu and sigma are kept in float32 first
