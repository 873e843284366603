"""All ways to compute the recurrence against the readable loop, and the physics of the shift."""

import math
import random

import pytest
import torch
from torch import Tensor

from agreement import dense_arguments, differing_subsets, distance, draw_ring, near_zero, outcome, ring_arguments, to
from wrnn.recurrence import buffers, cpp, dense_recurrence, functions, ring_recurrence

FAST = ["torch", "cpp"]


@pytest.fixture(autouse=True)
def _compiled() -> None:
    assert cpp.problem(torch.zeros(1, 1), torch.zeros(1, 1, 1)) is None, "these tests need a C++ compiler"


def compare(arguments: list[Tensor | None], wants: str, nonlinearity: str, store_every: int | None) -> None:
    """Float64 to rounding; float32 at most 4 times as far from float64 as the readable loop in float32.

    Or within 4e-6, some tens of roundings: the loop is sometimes lucky where a result is one number.
    """
    kind = {"wants": wants, "nonlinearity": nonlinearity}
    truth = outcome(ring_recurrence, arguments, backend="reference", **kind)
    single = to(arguments, torch.float32)
    loop = outcome(ring_recurrence, single, backend="reference", **kind)
    turns = near_zero(lambda: ring_recurrence(*arguments, backend="reference", **kind))
    for backend in FAST:
        options = {**kind, "backend": backend, "store_every": store_every}
        for i, (found, true) in enumerate(zip(outcome(ring_recurrence, arguments, **options), truth, strict=True)):
            assert found.shape == true.shape and distance(found, true) < 1e-12, (backend, i)
        if turns:
            continue  # a unit within rounding of 0 may fall to either side
        allowed = max(4 * max(map(distance, loop, truth)), 4e-6)
        for i, (found, true) in enumerate(zip(outcome(ring_recurrence, single, **options), truth, strict=True)):
            assert distance(found, true) <= allowed, (backend, i)


@pytest.mark.parametrize("number", [*range(60), *(pytest.param(n, marks=pytest.mark.slow) for n in range(60, 600))])
def test_fast_equals_reference(number):
    sizes, wants, nonlinearity, store_every = draw_ring(random.Random(number), small=False)
    compare(ring_arguments(**sizes), wants, nonlinearity, store_every)


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1, 1), (33, 5, 1, 3, 9, 3), (2, 9, 1, 1, 3, 3), (2, 5, 3, 5, 7, 7), (40, 4, 3, 2, 9, 3, None, True)],
)
@pytest.mark.parametrize("wants", ["last", "states"])
def test_odd_sizes(sizes, wants):
    compare(ring_arguments(*sizes), wants, "tanh", None)


@pytest.mark.parametrize("backend", FAST)
def test_float32_at_the_length_of_psmnist(backend):
    """784 steps of nearly the paper's start: all within 5e-5 of the largest number.

    All is positive here. Where a unit comes within rounding of zero, one float32 computation may pass a gradient that
    another stops, and a gradient of a few sequences may differ by 1e-2.
    """
    inputs, input_weight, bias, kernel, state, _ = ring_arguments(2, 784, 1, 16, 64, 3)
    shift = torch.zeros(16, 16, 3, dtype=torch.float64)
    shift[range(16), range(16), 2] = 0.99
    arguments = [inputs.abs(), input_weight.abs(), bias.abs(), shift + 0.002 * kernel.abs(), state.abs(), None]
    truth = outcome(ring_recurrence, to(arguments, torch.float64), "last", backend="reference")
    found = outcome(ring_recurrence, to(arguments, torch.float32), "last", backend=backend)
    assert all(distance(a, b) < 5e-5 for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("wants", ["last", "states"])
@pytest.mark.parametrize("features", [None, 1, 6])
def test_dense_equals_reference(features, wants, nonlinearity):
    arguments = dense_arguments(features=features)
    kind = {"wants": wants, "nonlinearity": nonlinearity}
    found = outcome(dense_recurrence, arguments, **kind)
    truth = outcome(dense_recurrence, arguments, backend="reference", **kind)
    assert all(distance(a, b) < 1e-12 for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_library_rnn_is_the_same_recurrence(nonlinearity):
    arguments = dense_arguments()
    states, last = functions.library_rnn(*arguments, nonlinearity)
    truth = dense_recurrence(*arguments, backend="reference", nonlinearity=nonlinearity)
    torch.testing.assert_close(states, truth.every_step)
    torch.testing.assert_close(last, truth.last)


@pytest.mark.parametrize("backend", FAST)
def test_any_subset_of_the_arguments_gets_its_gradients_and_no_other_does(backend):
    for features, outputs, shared, wants in ((3, 2, False, "readout"), (None, None, True, "last")):
        arguments = ring_arguments(2, 5, features, 2, 6, 3, outputs=outputs, shared=shared)
        assert not differing_subsets(ring_recurrence, arguments, backend, 1e-12, wants=wants)


@pytest.mark.parametrize("backend", FAST)
def test_a_readout_that_the_loss_does_not_see_has_a_gradient_of_zero(backend):
    *arguments, readout = ring_arguments(3, 6, 2, 2, 6, 3, outputs=2)
    ring_recurrence(*arguments, readout, wants="readout", backend=backend).last.sum().backward()
    assert torch.equal(readout.grad, torch.zeros_like(readout))
    for argument in arguments:
        assert argument.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", FAST)
def test_lanes_without_a_sequence_do_not_reach_a_gradient(backend):
    """Two sequences whose units stay silent beside idle lanes, in which the same kernel would grow without bound."""
    kernel, readout = torch.full((1, 1, 3), 3.0, requires_grad=True), torch.ones(2, 1, 9, requires_grad=True)
    silent = torch.full((2, 400, 1), -10.0), torch.ones(1, 9, 1), torch.ones(1, 9), kernel, torch.zeros(2, 1, 9)
    ring_recurrence(*silent, readout, wants="readout", backend=backend).every_step.sum().backward()
    assert torch.equal(readout.grad, torch.zeros_like(readout)) and torch.equal(kernel.grad, torch.zeros_like(kernel))


@pytest.mark.parametrize("features", [None, 3])
def test_any_subset_of_the_arguments_gets_its_gradients_from_the_dense_recurrence(features):
    assert not differing_subsets(dense_recurrence, dense_arguments(2, 5, features, 6), "torch", 1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own doing
@pytest.mark.parametrize("operator", ["ring", "dense"])
def test_operators_are_well_behaved(operator):
    """Schema, meta tensors, autograd and torch.compile's tracing, as torch's own checks see them."""
    inputs, input_weight, bias, kernel, state, readout = ring_arguments(2, 3, 2, 2, 4, 3, outputs=3)
    if operator == "ring":
        for backend in FAST:
            for wants, every, given_readout in (("readout", 1, readout), ("last", 2, None), ("states", 1, None)):
                arguments = (inputs, input_weight, bias, kernel, state, given_readout, "tanh", wants, every, backend)
                torch.library.opcheck(torch.ops.wrnn.ring.default, arguments)
    else:
        arguments = (inputs, input_weight[:, 0], bias[:, 0], kernel[..., 0], state[..., 0], "tanh")
        torch.library.opcheck(torch.ops.wrnn.dense.default, arguments)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", FAST)
def test_within_torch_compile(backend):
    arguments = ring_arguments(2, 6, 1, 2, 5, 3, dtype=torch.float32)

    def function(*tensors: Tensor) -> Tensor:
        return 2 * ring_recurrence(*tensors, wants="last", backend=backend).last.exp()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for f in (function, compiled):
        f(*arguments).sum().backward()
    torch.testing.assert_close(compiled(*arguments), function(*arguments))


def test_the_number_of_threads_does_not_change_a_bit():
    arguments = ring_arguments(37, 30, 2, 5, 40, 3, outputs=3, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(outcome(ring_recurrence, arguments, "readout", backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wants", ["readout", "last", "states"])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("backend", FAST)
def test_what_is_not_finite_is_not_hidden(backend, nonlinearity, wants):
    """One number of one argument is NaN or infinite: what is not finite in the loop's results is not finite here."""
    kind = {"wants": wants, "nonlinearity": nonlinearity}
    for number in (math.nan, math.inf, -math.inf):
        for which in range(6 if wants == "readout" else 5):
            outputs = 2 if wants == "readout" else None
            arguments = ring_arguments(2, 4, 2, 3, 9, 3, outputs=outputs, dtype=torch.float32)
            with torch.no_grad():
                arguments[which][(1,) * arguments[which].dim()] = number
            truth = outcome(ring_recurrence, arguments, backend="reference", **kind)
            found = outcome(ring_recurrence, arguments, backend=backend, **kind)
            for i, (a, b) in enumerate(zip(found, truth, strict=True)):
                assert not (a.isfinite() & ~b.isfinite()).any(), (number, which, i)
            assert torch.equal(found[0].isfinite(), truth[0].isfinite()), (number, which)


@pytest.mark.parametrize("scale", [1e30, 1e-40])
@pytest.mark.parametrize("nonlinearity", ["relu", "identity"])
@pytest.mark.parametrize("backend", FAST)
def test_huge_and_denormal_numbers_are_numbers_like_others(backend, nonlinearity, scale):
    inputs, input_weight, bias, kernel, state, _ = ring_arguments(2, 6, 2, 3, 17, 3)
    arguments = to([scale * inputs, input_weight, scale * bias, kernel, scale * state, None], torch.float32)
    kind = {"wants": "last", "nonlinearity": nonlinearity}
    truth = outcome(ring_recurrence, to(arguments, torch.float64), backend="reference", **kind)
    for a, b in zip(outcome(ring_recurrence, arguments, backend=backend, **kind), truth, strict=True):
        assert (a.double() - b).abs().max() <= 4e-6 * b.abs().max() + 64 * 2**-149  # or some smallest numbers


@pytest.mark.parametrize("backend", FAST)
def test_nothing_grows_behind_the_ring(backend):
    """The ring is silent from the first step on; what a kernel of sum 9 would do beside it must not be seen."""
    kernel = torch.full((1, 1, 3), 3.0, requires_grad=True)
    readout = torch.ones(2, 1, 9, requires_grad=True)
    silent = torch.zeros(1, 300, 1), torch.ones(1, 9, 1), torch.full((1, 9), -10.0), kernel, torch.full((1, 1, 9), 0.1)
    read = ring_recurrence(*silent, readout, wants="readout", backend=backend).every_step
    assert torch.equal(read, torch.zeros_like(read))
    read.sum().backward()
    assert torch.equal(kernel.grad, torch.zeros_like(kernel)) and torch.equal(readout.grad, torch.zeros_like(readout))


def test_tanh_of_the_kernel():
    """One step without weights is tanh of the drive: relative error below 3e-7 from 1e-6 to 50."""
    values = torch.cat([torch.logspace(-6, 1.7, 4000), torch.tensor([0.0, 0.624, 0.6251, 9.0, 88.0, 1e30])])
    values = torch.cat([values, -values]).view(1, 1, -1)
    width = values.numel()
    zero = torch.zeros(1, width), torch.zeros(1, 1, 1), torch.zeros(1, 1, width)
    found = ring_recurrence(values, None, *zero, nonlinearity="tanh", wants="last", backend="cpp").last.double()
    truth = values.double().tanh()
    assert torch.all((found - truth).abs() <= 3e-7 * truth.abs())


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_pulse_moves_one_neuron_a_step_exactly(backend):
    channels, neurons, steps = 2, 19, 57
    kernel = torch.zeros(channels, channels, 3)
    kernel[[0, 1], [0, 1]] = torch.tensor([0.0, 0.0, 1.0])
    input_weight = torch.zeros(channels, neurons, 1)
    input_weight[:, 0] = 1
    inputs = torch.zeros(3, steps + 1, 1)
    inputs[:, 0] = 1
    zero = torch.zeros(channels, neurons), kernel, torch.zeros(3, channels, neurons)
    states = ring_recurrence(inputs, input_weight, *zero, backend=backend).every_step
    for t in range(steps + 1):
        expected = torch.zeros(neurons)
        expected[-t % neurons] = 1
        assert torch.equal(states[:, t], expected.expand(3, channels, neurons))


def test_circulant_dense_equals_ring():
    inputs, input_weight, bias, kernel, state, _ = ring_arguments(3, 12, 2, 2, 6, 5)
    position = torch.arange(6)
    weight = torch.zeros(2, 6, 2, 6, dtype=torch.float64)
    for tap in range(5):
        weight[:, position, :, (position + tap - 2) % 6] += kernel[..., tap]
    dense = dense_recurrence(inputs, input_weight.flatten(0, 1), bias.flatten(), weight.view(12, 12), state.flatten(1))
    ring = ring_recurrence(inputs, input_weight, bias, kernel, state)
    torch.testing.assert_close(dense.every_step, ring.every_step.flatten(2))


@pytest.mark.parametrize("backend", FAST)
def test_double_backward_is_refused(backend):
    arguments = ring_arguments(2, 3, 1, 2, 4, 3)
    loss = ring_recurrence(*arguments, wants="last", backend=backend).last.square().sum()
    (gradient,) = torch.autograd.grad(loss, arguments[3], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative.*recurrence=reference"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", FAST)
def test_two_live_graphs_do_not_share_states(backend):
    def sizes(seed: int) -> list[Tensor | None]:
        return ring_arguments(40, 60, 1, 4, 40, 3, seed=seed)  # large enough for the pool

    options = {"wants": "last", "backend": backend}
    arguments = sizes(0)
    alone = outcome(ring_recurrence, arguments, **options)[1:]
    first = ring_recurrence(*arguments, **options).last
    ring_recurrence(*sizes(5), **options).last.sum().backward()
    second = ring_recurrence(*sizes(6), **options).last
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(1), dtype=first.dtype)
    tensors = [argument for argument in arguments if argument is not None]
    torch.testing.assert_close(torch.autograd.grad((first * weights).sum(), tensors), tuple(alone), rtol=0, atol=0)
    second.sum().backward()


@pytest.mark.parametrize("backend", FAST)
def test_memory_is_lent_again_after_the_backward(backend):
    arguments = ring_arguments(40, 60, 1, 4, 40, 3)
    seen, losses = set(), []  # a loss that outlives its backward must not hold the states
    for _ in range(4):
        losses.append(ring_recurrence(*arguments, wants="last", backend=backend).last.sum())
        losses[-1].backward()
        seen.add(len(buffers._FREE))
    assert len(seen) == 1 and seen != {0}


def test_a_dtype_that_the_kernel_has_not_is_refused_by_name():
    arguments = to(ring_arguments(), torch.bfloat16)
    with pytest.raises(ValueError, match="recurrence=cpp: runs float32 or float64 on the CPU, not torch.bfloat16"):
        ring_recurrence(*arguments, backend="cpp")
    assert ring_recurrence(*arguments, backend="auto").every_step.dtype == torch.bfloat16


def test_states_that_were_changed_in_place_are_refused():
    states = ring_recurrence(*ring_arguments(), backend="cpp").every_step
    with torch.no_grad():
        states.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


def test_autocast_computes_in_the_promoted_type():
    arguments = ring_arguments(2, 6, 6, 2, 4, 3, dtype=torch.float32)
    expected = outcome(ring_recurrence, arguments, "last")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = outcome(ring_recurrence, arguments, "last")
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_states_that_do_not_fit_are_computed_again(monkeypatch):
    arguments = ring_arguments(2, 30, 1, 2, 9, 3)
    truth = outcome(ring_recurrence, arguments, "last", backend="cpp")
    lines = []
    monkeypatch.setattr(functions, "MAX_STORED_BYTES", 0)
    monkeypatch.setattr(functions, "say_once", lines.append)
    found = outcome(ring_recurrence, arguments, "last", backend="cpp")
    assert all(distance(a, b) < 1e-12 for a, b in zip(found, truth, strict=True))
    assert any("store_every: 5, because all 30 states" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": torch.zeros(2, 2, 4)}, "kernel has 4 taps"),
        ({"kernel": torch.zeros(2, 2, 7)}, "kernel has 7 taps; must be odd and from 1 to the ring size 5"),
        ({"kernel": torch.zeros(2, 3, 3)}, "kernel is .*C=2, C=2, K>=1"),
        ({"state": torch.zeros(4, 2, 5)}, "state is .*B=3, C=2, N=5"),
        ({"inputs": torch.zeros(3, 0, 1)}, "inputs is .*T>=1"),
        ({"inputs": torch.zeros(0, 4, 1), "state": torch.zeros(0, 2, 5)}, "inputs is .*B>=1"),
        ({"inputs": torch.zeros(1, 4, 1), "state": torch.zeros(0, 2, 5)}, "state is .*B>=1"),
        ({"input_weight": None}, "inputs is .*C\\*N=10"),
        ({"input_weight": torch.zeros(2, 5, 2)}, "input_weight is .*I=1"),
        ({"nonlinearity": "gelu"}, "nonlinearity=.*relu, tanh, identity"),
        ({"backend": "numpy"}, "backend=.*auto, reference, torch, cpp"),
        ({"wants": "everything"}, "wants=.*states, readout, last"),
        ({"wants": "readout"}, "wants='readout'"),
        ({"store_every": 0}, "store_every=0"),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "inputs": torch.zeros(3, 4, 1),
        "input_weight": torch.zeros(2, 5, 1),
        "bias": torch.zeros(2, 5),
        "kernel": torch.zeros(2, 2, 3, requires_grad=True),
        "state": torch.zeros(3, 2, 5),
    }
    good |= {"wants": "last"}
    ring_recurrence(**good)
    with pytest.raises(ValueError, match=message):
        ring_recurrence(**(good | change))


@pytest.mark.parametrize(("batch", "steps"), [(0, 4), (3, 0)])
def test_the_dense_recurrence_refuses_no_sequences_and_no_steps(batch, steps):
    good = dense_arguments(3, 4, 1, 5)
    for backend in ("torch", "reference"):
        with pytest.raises(ValueError, match="inputs is .*B>=1, T>=1"):
            dense_recurrence(good[0][:batch, :steps], *good[1:4], good[4][:batch], backend=backend)


@pytest.mark.parametrize("backend", FAST)
def test_buffers_of_a_validation_serve_training_afterwards(backend) -> None:
    arguments = ring_arguments(40, 60, 1, 4, 40, 3, dtype=torch.float32)
    with torch.inference_mode():
        expected = ring_recurrence(*arguments, wants="last", backend=backend).last
    found = ring_recurrence(*arguments, wants="last", backend=backend).last
    found.sum().backward()
    assert torch.equal(found, expected)
