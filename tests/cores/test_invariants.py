"""What each system is known for: norms kept, eigenvalues where they should be, gates in their range, exact inverses."""

import math

import pytest
import torch

from conftest import Compose
from wrnn.cores.antisymmetric import AntisymmetricRNN
from wrnn.cores.cornn import CoupledOscillators
from wrnn.cores.exprnn import ExponentialRNN, skew
from wrnn.cores.flextcn import FlexTCN
from wrnn.cores.incremental import IncrementalRNN
from wrnn.cores.indrnn import IndependentRNN
from wrnn.cores.lem import LongExpressiveMemory
from wrnn.cores.lipschitz import LipschitzRNN
from wrnn.cores.locally_connected import LocallyConnectedRNN
from wrnn.cores.nwm import NeuralWaveMachine
from wrnn.cores.unicornn import UndampedOscillators, forth
from wrnn.cores.ur_lstm import URLSTM, refined
from wrnn.cores.urnn import UnitaryRNN
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.errors import ConfigError
from wrnn.inits import Initializer
from wrnn.training import build


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def fill(core: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for weight in core.parameters():
            weight.fill_(value)


def test_the_recurrence_of_a_urnn_is_unitary() -> None:
    core = UnitaryRNN(1, 33).double()
    whole = core.rotate(torch.eye(33, dtype=torch.complex128), *core.matrices()).T
    torch.testing.assert_close(whole @ whole.conj().T, torch.eye(33, dtype=torch.complex128))
    state = torch.randn(4, 33, dtype=torch.complex128)
    torch.testing.assert_close(core.rotate(state, *core.matrices()), state @ whole.T)
    single = UnitaryRNN(1, 128)
    state = torch.randn(4, 128, dtype=torch.complex64)
    after = single.rotate(state, *single.matrices())
    torch.testing.assert_close(after.norm(dim=1), state.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("start", ["cayley", "henaff"])
@pytest.mark.parametrize("size", [12, 13])
def test_the_recurrence_of_an_exprnn_is_orthogonal_and_starts_as_rotations(start: str, size: int) -> None:
    core = ExponentialRNN(1, size, start=start)
    angles = core.upper.detach()[core.upper != 0]
    assert len(angles) == size // 2
    (rotation,) = core.matrices()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size), rtol=0, atol=1e-5)
    found = torch.linalg.eigvals(rotation.detach()).angle().abs().sort().values
    expected = torch.cat([angles.abs(), angles.abs(), torch.zeros(size % 2)]).sort().values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_an_exponential_keeps_its_digits_however_large_it_is() -> None:
    core = ExponentialRNN(input_size=1, hidden_size=33)
    direction = 1e4 * torch.randn(33, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        (rotation,) = core.to(dtype).matrices()
        return torch.autograd.grad(rotation, core.upper, direction.to(dtype))[0].double()

    core.double()
    exact = core.upper.detach().clone().requires_grad_()
    torch.matrix_exp(skew(exact, 33)).backward(direction)
    assert torch.allclose(gradient(torch.float64), exact.grad, rtol=1e-10, atol=1e-10 * float(exact.grad.abs().max()))
    assert (gradient(torch.float32) - exact.grad).abs().max() < 1e-5 * exact.grad.abs().max()


@pytest.mark.parametrize("gated", [False, True])
def test_an_antisymmetric_rnn_has_all_eigenvalues_on_one_line(gated: bool) -> None:
    core = AntisymmetricRNN(2, 20, gated=gated, diffusion=0.03).double()
    eigenvalues = torch.linalg.eigvals(core.matrices()[0].detach())
    torch.testing.assert_close(eigenvalues.real, torch.full((20,), -0.03, dtype=torch.float64))


def test_a_lipschitz_rnn_at_beta_1_is_skew_and_without_its_linear_part_an_antisymmetric_one() -> None:
    core = LipschitzRNN(2, 10, beta=1.0, gamma=0.2, weight_scale=3, step_size=0.1).double()
    for matrix in core.matrices():
        assert torch.equal(matrix + matrix.T, -0.4 * torch.eye(10, dtype=torch.float64))
    other = AntisymmetricRNN(2, 10, diffusion=0.2, step_size=0.1).double()
    with torch.no_grad():
        core.linear.zero_()
        row, column = torch.triu_indices(10, 10, 1)
        other.upper.copy_((core.weight - core.weight.T)[row, column])
        other.input_map.load_state_dict(core.input_map.state_dict())
    inputs = torch.randn(3, 6, 2, dtype=torch.float64)
    core.gamma, (_, weight) = 0.0, core.matrices()  # the linear part is -gamma I alone now
    core.matrices = lambda: (torch.zeros_like(weight), weight)
    torch.testing.assert_close(core(inputs)[0], other(inputs)[0])


def test_oscillators_without_springs_or_friction_drift() -> None:
    core = CoupledOscillators(1, 4, time_step=0.1, gamma=0, epsilon=0)
    fill(core, 0)
    start = torch.zeros(1, 4), torch.tensor([[1.0, 2, 3, -1]])
    outputs, (y, z) = core(torch.randn(1, 50, 1), start)
    assert torch.equal(z, start[1])
    torch.testing.assert_close(y, 50 * 0.1 * start[1])
    torch.testing.assert_close(outputs[:, 24], 25 * 0.1 * start[1])


@pytest.mark.parametrize("coupling", ["torus", "rings", "uncoupled"])
def test_an_nwm_is_a_cornn_whose_couplings_go_round(coupling: str) -> None:
    options = {"time_step": 0.1, "gamma": 1.5, "epsilon": 0.5}
    machine = NeuralWaveMachine(2, 9, coupling=coupling, **options).double()
    dense = CoupledOscillators(2, 9, **options).double()
    weight = torch.zeros(9, 2, 3, 3, dtype=torch.float64)
    taps = machine.kernel.detach()[0]  # on z, on y
    height, width = taps.shape[1:]
    for unit in range(9):
        for source, tap in ((1, taps[0]), (0, taps[1])):  # the dense matrix is on (y, z)
            for up in range(height):
                for right in range(width):
                    at = (unit // 3 + up - height // 2) % 3, (unit % 3 + right - width // 2) % 3
                    weight[(unit, source, *at)] += tap[up, right]
    with torch.no_grad():
        dense.weight.copy_(weight.flatten(1))
        dense.input_map.weight.copy_(machine.input_map.weight)
        bias = 0 if coupling == "uncoupled" else machine.bias.sum()
        dense.input_map.bias.copy_(machine.input_map.bias + bias)
    inputs = torch.randn(2, 7, 2, dtype=torch.float64)
    torch.testing.assert_close(machine(inputs)[0], dense(inputs)[0])


def test_oscillators_start_as_released() -> None:
    assert (NeuralWaveMachine(2, 9, coupling="uncoupled").kernel == 1).all()
    for start, bound, input_bound in (("joint", 352**-0.5, 352**-0.5), ("separate", 128**-0.5, 96**-0.5)):
        core = CoupledOscillators(96, 128, start=start)
        assert float(core.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(core.input_map.weight.detach().abs().max()) == pytest.approx(input_bound, rel=0.01)


def test_a_readout_too_sees_a_unicornn_after_dropout() -> None:
    off = UndampedOscillators(1, 200, num_layers=1, dropout=0.5).train()(torch.randn(1, 5, 1))[0] == 0
    assert 60 < int(off[0, -1].sum()) < 140 and (off == off[:, -1:]).all()


def test_the_gates_of_a_lem_freeze_it_or_overwrite_it() -> None:
    core = LongExpressiveMemory(1, 5).double()
    size, inputs = 5, torch.randn(2, 1, 1, dtype=torch.float64)
    start = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        core.input_map.bias[: 2 * size] = -1e6
        _, (y, z) = core(inputs, start)
        assert torch.equal(y, start[0]) and torch.equal(z, start[1])
        core.input_map.bias[: 2 * size] = 1e6
        _, (y, z) = core(inputs, start)
        drive = core.input_map(inputs[:, 0])
        expected_z = torch.tanh(start[0] @ core.weight_from_y[2 * size :].T + drive[:, 2 * size : 3 * size])
        torch.testing.assert_close(z, expected_z)
        torch.testing.assert_close(y, torch.tanh(z @ core.weight_from_z.T + drive[:, 3 * size :]))


def test_a_refined_gate_stays_in_its_range_and_starts_over_all_time_scales() -> None:
    f, r = torch.rand(2, 1000).double()
    gate = refined(f, r)
    assert (gate >= f**2 - 1e-12).all() and (gate <= 1 - (1 - f) ** 2 + 1e-12).all()
    torch.testing.assert_close(refined(f, torch.full_like(f, 0.5)), f)
    torch.testing.assert_close(refined(f, torch.zeros_like(f)), f**2)
    core = URLSTM(1, 2000)
    forget, refine = core.input_map.bias.detach().sigmoid()[:4000].chunk(2)
    expected = (torch.arange(2000) + 0.5) / 2000
    assert (forget.sort().values - expected).abs().max() < 0.05  # Kolmogorov-Smirnov at 2000: 0.04 is one in 400
    torch.testing.assert_close(refine, 1 - forget)
    assert (URLSTM(1, 9, refine_bias="none").input_map.bias[9:18] == 0).all()


def test_a_unicornn_step_can_be_undone() -> None:
    y, z, drive = torch.randn(3, 4, 7, dtype=torch.float64)
    w, step = torch.rand(2, 7, dtype=torch.float64)
    now = y, z
    for _ in range(20):
        now = forth(*now, drive, w, 0.1 * step, 13.0)
    for _ in range(20):
        after = now[0] - 0.1 * step * now[1]  # the position, then the momentum, as they were
        now = after, now[1] + 0.1 * step * (torch.tanh(w * after + drive) + 13.0 * after)
    torch.testing.assert_close(now, (y, z), rtol=1e-9, atol=1e-9)


def test_an_indrnn_is_kept_within_its_limit() -> None:
    core = IndependentRNN(1, sequence_length=784, hidden_size=50, num_layers=3)
    assert core.limit == pytest.approx(1.00205, abs=1e-5)
    assert all(0 <= u.min() and u.max() <= core.limit for u in core.weights)
    with torch.no_grad():
        core.weights[1].fill_(-3)
    core.constrain_()
    assert (core.weights[1] == -core.limit).all()
    intended = IndependentRNN(1, 784, 50, last_layer_init="intended").weights[-1]
    assert 1 / core.limit <= intended.min() and intended.max() <= core.limit


def test_one_dropout_mask_serves_all_steps() -> None:
    core = IndependentRNN(1, sequence_length=30, hidden_size=40, num_layers=1, dropout=0.5).train()
    core.maps[0].weight.detach().abs_()  # no unit is silent of itself
    outputs, _ = core(torch.rand(5, 30, 1))
    off = (outputs == 0).all(1)
    assert torch.equal(off, (outputs == 0).any(1)) and 0.3 < off.float().mean() < 0.7


def test_at_its_balance_an_incremental_rnn_turns_its_past_around() -> None:
    core = IncrementalRNN(1, 4, num_increments=60, rank=2, input_rank=1, recurrent_scale=1.0).double()
    with torch.no_grad():
        core.eta.fill_(0.5)
    state = torch.randn(1, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda s: core(torch.ones(1, 1, 1).double(), s)[1], state)
    torch.testing.assert_close(jacobian[0, :, 0], -torch.eye(4, dtype=torch.float64), atol=1e-4, rtol=0)
    core = IncrementalRNN(1, 4, rank=2, input_rank=1).double()  # one increment, from the start that is ours
    jacobian = torch.autograd.functional.jacobian(lambda s: core(torch.ones(1, 1, 1).double(), s)[1], state)
    assert torch.equal(jacobian[0, :, 0], -torch.eye(4, dtype=torch.float64))


def test_flextcn_is_causal_and_its_kernel_is_cut() -> None:
    core = FlexTCN(2, hidden_size=5, num_blocks=2, kernel_hidden_size=6).double().eval()
    inputs = torch.randn(2, 40, 2, dtype=torch.float64)
    changed = inputs.clone()
    changed[:, 25:] += 1
    before, after = core(inputs)[0], core(changed)[0]
    torch.testing.assert_close(before[:, :25], after[:, :25], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 25:], after[:, 25:])
    kernel = core.blocks[0].layers[0].kernel(1000).detach()
    reach = math.ceil(1000 * 0.075 * math.sqrt(-2 * math.log(0.1)) / 2)
    assert (kernel[..., : 999 - reach] == 0).all() and (kernel[..., 1000 - reach :] != 0).all()
    with pytest.raises(NotImplementedError, match="FlexTCN sees whole sequences only"):
        core.step(inputs[:, 0], ())


def test_kernels_that_are_all_alike_make_a_wrnn() -> None:
    start = Initializer(lambda weight: torch.nn.init.normal_(weight, std=0.3), "pytorch")
    own = LocallyConnectedRNN(2, 3, 8, input_init=start).double()
    shared = TravelingWaveRNN(2, 3, 8, init=start, input_init=start).double()
    with torch.no_grad():
        own.kernel.copy_(shared.kernel)
        own.bias.copy_(shared.bias)
        own.input_map.load_state_dict(shared.input_map.state_dict())
    inputs = torch.randn(2, 9, 2, dtype=torch.float64)
    torch.testing.assert_close(own(inputs)[0], shared(inputs)[0])
    impulse = torch.zeros(1, 20, 1)
    impulse[0, 0] = 1
    wave = LocallyConnectedRNN(1, 2, 7)(impulse)[0].detach().view(20, 2, 7)
    assert all(torch.equal(state, torch.eye(7)[-t % 7].expand(2, 7)) for t, state in enumerate(wave))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "model=nwm model.core.hidden_size=128",
            "model.core.hidden_size=128: must be the square.* 121 or 144, say",
        ),
        (
            "model=nwm model.core.kernel_size=4",
            "model.core.kernel_size=4: must be odd and at most the side of the square=16",
        ),
        ("model=nwm model.core.coupling=cube", "model.core.coupling='cube': must be one of torus, rings, uncoupled"),
        ("model=locally_connected model.core.kernel_size=2", "model.core.kernel_size=2: must be odd and at most"),
        ("model=lem model.core.time_step=0", "model.core.time_step=0: must be a number above 0 and at most 1"),
        ("model=lem model.core.time_step=1.5", "model.core.time_step=1.5: must be a number above 0 and at most 1"),
        ("model=cornn model.core.time_step=0", "model.core.time_step=0: must be a number above 0"),
        ("model=cornn model.core.gamma=-1", r"model.core.gamma=-1: must be a number of at least 0"),
        ("model=lipschitz model.core.step_size=0", "model.core.step_size=0: must be a number above 0"),
        ("model=lipschitz model.core.beta=2", r"model.core.beta=2: must be a number in \[0, 1\]"),
        ("model=antisymmetric model.core.step_size=-1", "model.core.step_size=-1: must be a number above 0"),
        ("model=unicornn model.core.time_step=nan", "model.core.time_step=nan: must be a number above 0"),
        ("model=shift_register model.core.num_places=101", "model.core.num_places=101: must be at most the 100 steps"),
        ("model=shift_ssm model.core.layer.num_places=101", "model.core.layer.num_places=101: must be at most the 100"),
        ("model=lru model.core.layer.radius_max=1", r"model.core.layer.radius_max=1: must be a number in"),
        ("model=lru model.core.layer.radius_min=1", r"model.core.layer.radius_min=1: must be in \[0, "),
        ("model=lru +model.core.layer.unit=3", "model.core.layer.unit: wrnn.cores.lru.* has no such key; did you mean"),
        ("model=lru model.core.block=gru", "model.core.block='gru': must be one of glu, none"),
        ("model=s4d model.core.layer.state_size=7", "model.core.layer.state_size=7: must be even"),
        (
            "model=s4d model.core.layer.step_min=1",
            "step_min=1: must be a number above 0 and at most 0.1",
        ),
        ("model=mingru model.core.layer.expansion=0", "model.core.layer.expansion=0: must be a number above 0"),
        ("model=incremental model.core.rank=500", "model.core.rank=500: must be at most model.core.hidden_size=128"),
        ("model=indrnn model.core.dropout=1", r"model.core.dropout=1: must be a number in \[0, 1\)"),
        ("model=ur_lstm model.core.refine_bias=plus", "model.core.refine_bias='plus': must be one of minus, none"),
        ("model=exprnn model.core.start=flat", "model.core.start='flat': must be one of henaff, cayley"),
        ("model=urnn model.core.hidden_size=0", "model.core.hidden_size=0: must be a whole number of at least 1"),
        ("model=lstm model.core.biases=three", "model.core.biases='three': must be one of one, two"),
        ("model=lstm recurrence=cuda", "recurrence='cuda': must be one of auto, .*, compile"),
        ("model=lem init=shift", "init: model=lem has its own start only; use init=paper"),
    ],
)
def test_a_bad_setting_is_one_clear_line(compose_config: Compose, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(compose_config("task=adding", *words.split()))
    assert "\n" not in str(caught.value)
