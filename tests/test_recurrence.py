"""The fused recurrence against the readable loop, and the physics of the shift."""

import itertools

import pytest
import torch
from torch import Tensor

from wrnn import recurrence
from wrnn.recurrence import BACKENDS, dense_recurrence, ring_recurrence

# batch, steps, inputs (None: finished drive), channels, neurons, taps
RINGS = [
    (3, 7, 2, 3, 5, 3),
    (1, 1, 1, 1, 1, 1),
    (2, 11, 6, 4, 7, 5),
    (17, 20, 1, 2, 9, 7),
    (2, 5, None, 3, 6, 3),
    (4, 3, 1, 1, 8, 1),
]
OPTIONS = list(itertools.product(["relu", "tanh", "identity"], [False, True]))


def ring_arguments(sizes: tuple, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor | None, ...]:
    batch, steps, features, channels, neurons, taps = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=dtype)).requires_grad_()

    width = channels * neurons if features is None else features
    inputs = draw(batch, width, steps).detach().transpose(1, 2).requires_grad_()  # not contiguous
    input_weight = None if features is None else draw(channels, neurons, features)
    kernel = draw(channels, channels, taps, scale=0.5 / (channels * taps) ** 0.5)
    return inputs, input_weight, draw(channels, neurons, scale=0.3), kernel, draw(batch, channels, neurons)


def outcome(function, arguments, **options) -> list[Tensor]:
    """The value, then the gradients of a fixed random functional of it."""
    value = function(*arguments, **options)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    tensors = [argument for argument in arguments if argument is not None and argument.requires_grad]
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), tensors)]


def assert_agree(function, arguments, **options) -> None:
    for ours, truth in zip(
        outcome(function, arguments, **options),
        outcome(function, arguments, backend="reference", **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-11)  # float64: only the order of sums differs


@pytest.mark.parametrize(("nonlinearity", "last_only"), OPTIONS)
@pytest.mark.parametrize("sizes", RINGS, ids=str)
def test_ring_equals_reference(sizes, nonlinearity, last_only, monkeypatch):
    arguments = ring_arguments(sizes)
    assert_agree(ring_recurrence, arguments, nonlinearity=nonlinearity, last_only=last_only)
    monkeypatch.setattr(recurrence, "MAX_STORED_BYTES", 0)  # states recomputed in the backward
    assert_agree(ring_recurrence, arguments, nonlinearity=nonlinearity, last_only=last_only)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("features", [None, 1, 6])
def test_dense_equals_reference(features, last_only):
    inputs, input_weight, bias, weight, state = ring_arguments((3, 9, features, 7, 1, 1))
    input_weight = None if input_weight is None else input_weight[:, 0]
    arguments = (inputs, input_weight, bias[:, 0], weight[..., 0], state[..., 0])
    assert_agree(dense_recurrence, arguments, last_only=last_only)


def test_reference_is_torch_rnn():
    inputs, input_weight, bias, weight, state = ring_arguments((3, 9, 2, 7, 1, 1))
    rnn = torch.nn.RNN(2, 7, nonlinearity="relu", batch_first=True, dtype=torch.float64)
    for parameter, value in zip(rnn.parameters(), (input_weight, weight, bias, torch.zeros(7)), strict=True):
        parameter.data.copy_(value.view(parameter.shape))
    arguments = (inputs, input_weight[:, 0], bias[:, 0], weight[..., 0], state[..., 0])
    expected = rnn(inputs, state[..., 0].unsqueeze(0))[0]
    torch.testing.assert_close(dense_recurrence(*arguments, backend="reference"), expected)


def test_only_asked_gradients():
    inputs, input_weight, bias, kernel, state = ring_arguments((2, 5, 3, 2, 6, 3))
    for kept in range(5):
        arguments = [
            t.detach().requires_grad_(i == kept) for i, t in enumerate((inputs, input_weight, bias, kernel, state))
        ]
        assert_agree(ring_recurrence, arguments, last_only=True)


@pytest.mark.parametrize("last_only", [False, True])
def test_gradcheck(last_only):
    ring = ring_arguments((2, 3, 2, 2, 4, 3))
    assert torch.autograd.gradcheck(lambda *a: ring_recurrence(*a, nonlinearity="tanh", last_only=last_only), ring)
    inputs, input_weight, bias, weight, state = ring_arguments((2, 3, 2, 3, 1, 1))
    dense = (inputs, input_weight[:, 0], bias[:, 0], weight[..., 0], state[..., 0])
    assert torch.autograd.gradcheck(lambda *a: dense_recurrence(*a, nonlinearity="tanh", last_only=last_only), dense)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_pulse_moves_one_neuron_a_step_exactly(backend):
    channels, neurons, steps = 2, 7, 21
    kernel = torch.zeros(channels, channels, 3)
    kernel[[0, 1], [0, 1]] = torch.tensor([0.0, 0.0, 1.0])
    input_weight = torch.zeros(channels, neurons, 1)
    input_weight[:, 0] = 1
    inputs = torch.zeros(3, steps + 1, 1)
    inputs[:, 0] = 1
    zero = torch.zeros(channels, neurons), kernel, torch.zeros(3, channels, neurons)
    states = ring_recurrence(inputs, input_weight, *zero, backend=backend)
    for t in range(steps + 1):
        expected = torch.zeros(neurons)
        expected[-t % neurons] = 1
        assert torch.equal(states[:, t], expected.expand(3, channels, neurons))


def test_circulant_dense_equals_ring():
    inputs, input_weight, bias, kernel, state = ring_arguments((3, 12, 2, 2, 6, 5))
    position = torch.arange(6)
    weight = torch.zeros(2, 6, 2, 6, dtype=torch.float64)
    for tap in range(5):
        weight[:, position, :, (position + tap - 2) % 6] += kernel[..., tap]
    dense = dense_recurrence(inputs, input_weight.flatten(0, 1), bias.flatten(), weight.view(12, 12), state.flatten(1))
    torch.testing.assert_close(dense, ring_recurrence(inputs, input_weight, bias, kernel, state).flatten(2))


def test_double_backward_is_refused():
    arguments = ring_arguments((2, 3, 1, 2, 4, 3))
    loss = ring_recurrence(*arguments, last_only=True).square().sum()
    (gradient,) = torch.autograd.grad(loss, arguments[3], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_two_live_graphs_do_not_share_states():
    arguments = ring_arguments((2, 6, 1, 2, 4, 3))
    alone = outcome(ring_recurrence, arguments, last_only=True)[1:]
    first = ring_recurrence(*arguments, last_only=True)
    ring_recurrence(*ring_arguments((2, 6, 1, 2, 4, 3), seed=5), last_only=True).sum().backward()
    second = ring_recurrence(*ring_arguments((2, 6, 1, 2, 4, 3), seed=6), last_only=True)
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(1), dtype=first.dtype)
    torch.testing.assert_close(torch.autograd.grad((first * weights).sum(), arguments), tuple(alone), rtol=0, atol=0)
    second.sum().backward()


def test_states_are_lent_again_after_the_backward():
    arguments = ring_arguments((2, 50, 1, 2, 40, 3))
    losses = []  # a loss that outlives its backward must not hold the states
    for _ in range(3):
        losses.append(ring_recurrence(*arguments, last_only=True).sum())
        losses[-1].backward()
    assert all(user() is None for _, user in recurrence._POOL)


def test_autocast_computes_in_the_promoted_type():
    arguments = ring_arguments((2, 6, 6, 2, 4, 3), dtype=torch.float32)
    expected = outcome(ring_recurrence, arguments, last_only=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = outcome(ring_recurrence, arguments, last_only=True)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": torch.zeros(2, 2, 4)}, "kernel has 4 taps"),
        ({"kernel": torch.zeros(2, 2, 7)}, "kernel has 7 taps; must be odd and from 1 to the ring size 5"),
        ({"kernel": torch.zeros(2, 3, 3)}, "kernel is .*C=2, C=2, K>=1"),
        ({"state": torch.zeros(4, 2, 5)}, "state is .*B=3, C=2, N=5"),
        ({"inputs": torch.zeros(3, 0, 1)}, "inputs is .*T>=1"),
        ({"input_weight": None}, "inputs is .*C\\*N=10"),
        ({"input_weight": torch.zeros(2, 5, 2)}, "input_weight is .*I=1"),
        ({"nonlinearity": "gelu"}, "nonlinearity=.*relu, tanh, identity"),
        ({"backend": "numpy"}, "backend=.*reference, torch"),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "inputs": torch.zeros(3, 4, 1),
        "input_weight": torch.zeros(2, 5, 1),
        "bias": torch.zeros(2, 5),
        "kernel": torch.zeros(2, 2, 3),
        "state": torch.zeros(3, 2, 5),
    }
    ring_recurrence(**good)
    with pytest.raises(ValueError, match=message):
        ring_recurrence(**(good | change))


def test_buffers_of_a_validation_serve_training_afterwards() -> None:
    kernel = torch.randn(2, 2, 3, requires_grad=True)
    arguments = (torch.randn(4, 7, 1), torch.randn(2, 5, 1), torch.zeros(2, 5), kernel, torch.zeros(4, 2, 5))
    with torch.inference_mode():
        expected = ring_recurrence(*arguments, last_only=True)
    found = ring_recurrence(*arguments, last_only=True)
    found.sum().backward()
    assert torch.equal(found, expected)
