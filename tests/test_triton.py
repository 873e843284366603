"""The Triton kernels against the readable loop: on the GPU if there is one, else in Triton's interpreter."""

import math
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agreement import differing_subsets, distance, draw_ring, near_zero, outcome, ring_arguments, to
from conftest import needs_triton
from wrnn.recurrence import ops, ring_recurrence, triton_rings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = needs_triton


def single(arguments: list[Tensor | None]) -> list[Tensor | None]:
    """The same in float32 where the kernels run, as new leaves."""
    return to(arguments, torch.float32, DEVICE)


def compare(arguments: list[Tensor | None], wants: str, nonlinearity: str = "tanh", store_every: int | None = None):
    """At most 4 times as far from float64 as the readable loop in float32 is, or within 4e-6."""
    kind = {"wants": wants, "nonlinearity": nonlinearity}
    if near_zero(lambda: ring_recurrence(*arguments, backend="reference", **kind)):
        return  # a unit within rounding of 0 may fall to either side
    truth = outcome(ring_recurrence, arguments, backend="reference", **kind)
    loop = outcome(ring_recurrence, to(arguments, torch.float32), backend="reference", **kind)
    found = outcome(ring_recurrence, single(arguments), backend="triton", store_every=store_every, **kind)
    allowed = max(4 * max(map(distance, loop, truth)), 4e-6)
    for i, (value, true) in enumerate(zip(found, truth, strict=True)):
        assert value.shape == true.shape and distance(value.cpu(), true) <= allowed, i


@pytest.mark.parametrize("number", range(30))
def test_equals_the_readable_loop(number):
    sizes, wants, nonlinearity, store_every = draw_ring(random.Random(number), small=True)
    compare(ring_arguments(**sizes), wants, nonlinearity, store_every)


@pytest.mark.parametrize("store_every", [None, 1, 4])
@pytest.mark.parametrize("wants", ["last", "states", "readout"])
@pytest.mark.parametrize(("features", "shared"), [(1, False), (2, False), (5, False), (None, False), (None, True)])
def test_every_mode(monkeypatch, features, shared, wants, store_every):
    """Inputs inside the kernel, as a product, finished, or shared; segments of two steps where time may be cut."""
    monkeypatch.setattr(triton_rings, "SEGMENT_BYTES", 2 * 4 * 3 * 18 * 16)
    outputs = 2 if wants == "readout" else None
    arguments = ring_arguments(3, 9, features, 2, 18, 3, outputs=outputs, shared=shared)
    compare(arguments, wants, store_every=store_every)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (5, 5, 1, 16, 16, 9), (2, 3, 2, 17, 33, 5), (2, 9, 1, 1, 3, 3)])
def test_odd_sizes(sizes):
    compare(ring_arguments(*sizes), "last")


def test_a_long_sequence():
    """784 steps of nearly the paper's start, as in test_recurrence.py: within 5e-5 of the largest number."""
    inputs, input_weight, bias, kernel, state, _ = ring_arguments(1, 784, 1, 16, 32, 3)
    shift = torch.zeros(16, 16, 3, dtype=torch.float64)
    shift[range(16), range(16), 2] = 0.99
    arguments = [inputs.abs(), input_weight.abs(), bias.abs(), shift + 0.002 * kernel.abs(), state.abs(), None]
    arguments = [None if argument is None else argument.detach().requires_grad_() for argument in arguments]
    truth = outcome(ring_recurrence, arguments, "last", backend="reference")
    found = outcome(ring_recurrence, single(arguments), "last", backend="triton")
    assert all(distance(a.cpu(), b) < 5e-5 for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("batch", [1, 40 if DEVICE == "cpu" else 4096])
def test_small_and_large_batches(batch):
    compare(ring_arguments(batch, 3, 1, 3, 10, 3), "last")


@pytest.mark.parametrize("neurons", [19, 32])
def test_pulse_moves_one_neuron_a_step_exactly(neurons):
    channels, steps = 2, 3 * neurons
    kernel = torch.zeros(channels, channels, 3, device=DEVICE)
    kernel[[0, 1], [0, 1]] = torch.tensor([0.0, 0.0, 1.0], device=DEVICE)
    input_weight = torch.zeros(channels, neurons, 1, device=DEVICE)
    input_weight[:, 0] = 1 / 3  # all 24 bits of it must arrive
    inputs = torch.zeros(3, steps + 1, 1, device=DEVICE)
    inputs[:, 0] = 1
    zeros = torch.zeros(3, channels, neurons, device=DEVICE)
    states = ring_recurrence(inputs, input_weight, zeros[0], kernel, zeros, backend="triton").every_step.cpu()
    for t in range(steps + 1):
        expected = torch.zeros(neurons)
        expected[-t % neurons] = 1 / 3
        assert torch.equal(states[:, t], expected.expand(3, channels, neurons))


def test_any_subset_of_the_arguments_gets_its_gradients_and_no_other_does():
    arguments = single(ring_arguments(1, 2, 3, 2, 6, 3, outputs=2))
    assert not differing_subsets(ring_recurrence, arguments, "triton", 2e-6, wants="readout")


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_a_nan_is_not_hidden(nonlinearity):
    arguments = single(ring_arguments(2, 4, 1, 2, 9, 3))
    arguments[4] = torch.full_like(arguments[4], math.nan).requires_grad_()
    found = outcome(ring_recurrence, arguments, "last", backend="triton", nonlinearity=nonlinearity)
    assert all(value.isnan().any() for value in (found[0], found[4]))


def test_nothing_grows_behind_the_ring():
    """The ring is silent from the first step on; what a kernel of sum 9 would do in the padding must not be seen."""
    kernel = torch.full((1, 1, 3), 3.0, requires_grad=True, device=DEVICE)
    readout = torch.ones(2, 1, 9, requires_grad=True, device=DEVICE)
    bias, state = torch.full((1, 9), -10.0, device=DEVICE), torch.full((1, 1, 9), 0.1, device=DEVICE)
    silent = torch.zeros(1, 300, 1, device=DEVICE), torch.ones(1, 9, 1, device=DEVICE), bias, kernel, state
    read = ring_recurrence(*silent, readout, wants="readout", backend="triton").every_step
    assert torch.equal(read, torch.zeros_like(read))
    read.sum().backward()
    assert torch.equal(kernel.grad, torch.zeros_like(kernel)) and torch.equal(readout.grad, torch.zeros_like(readout))


def test_tanh_of_the_kernel():
    """One step without weights is tanh of the drive: relative error below 3e-7, on a GPU 5e-7, from 1e-6 to 50."""
    values = torch.cat([torch.logspace(-6, 1.7, 500), torch.tensor([0.0, 0.624, 0.6251, 9.0, 88.0, 1e30])])
    values = torch.cat([values, -values]).view(1, 1, -1).to(DEVICE)
    zero = torch.zeros_like(values[0]), torch.zeros(1, 1, 1, device=DEVICE), torch.zeros_like(values)
    found = ring_recurrence(values, None, *zero, nonlinearity="tanh", wants="last", backend="triton").last.double()
    truth = values.double().tanh()
    assert torch.all((found - truth).abs() <= (3e-7 if DEVICE == "cpu" else 5e-7) * truth.abs())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own doing
@pytest.mark.parametrize(("wants", "every"), [("readout", 1), ("last", 2), ("states", 1)])
def test_operator_is_well_behaved(wants, every):
    *arguments, readout = single(ring_arguments(2, 3, 2, 2, 4, 3, outputs=3))
    arguments = (*arguments, readout if wants == "readout" else None, "tanh", wants, every, "triton")
    torch.library.opcheck(torch.ops.wrnn.ring.default, arguments, atol=1e-5, rtol=1e-5)


def test_tf32_is_a_thousandth_off():
    """With 10 bits of each factor, and only when it is asked for: all other tests are held to float32."""
    arguments = ring_arguments(2, 9, 1, 3, 18, 3)
    truth = outcome(ring_recurrence, arguments, "last", backend="reference", nonlinearity="identity")
    torch.set_float32_matmul_precision("high")
    try:
        found = outcome(ring_recurrence, single(arguments), "last", backend="triton", nonlinearity="identity")
    finally:
        torch.set_float32_matmul_precision("highest")
    error = max(distance(value.cpu(), true) for value, true in zip(found, truth, strict=True))
    assert 1e-5 < error < 5e-3


def test_gradients_are_the_same_bits_every_time():
    arguments = single(ring_arguments(9, 12, 2, 5, 20, 3, outputs=3))
    first, second = (outcome(ring_recurrence, arguments, "readout", backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_what_the_tuner_tries_leaves_no_trace(tmp_path):
    """The step at which it tries has the gradients of the next, and of the loop. No other test here is tuned."""
    code = """
        from agreement import distance, outcome, ring_arguments, to
        import torch
        from wrnn.recurrence import ring_recurrence
        arguments = ring_arguments(9, 12, 2, 5, 20, 3, outputs=3)
        truth = outcome(ring_recurrence, arguments, "readout", backend="reference")
        for _ in range(2):
            found = outcome(ring_recurrence, to(arguments, torch.float32, DEVICE), "readout", backend="triton")
            print(max(distance(a.cpu(), b) for a, b in zip(found, truth, strict=True)))
    """
    folders = os.pathsep.join(str(Path(__file__).parents[1] / name) for name in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": folders, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("WRNN_TUNE")
    script = textwrap.dedent(code).replace("DEVICE", repr(DEVICE))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(float(line) < 4e-6 for line in done.stdout.split()[-2:]), done.stdout


def test_another_dtype_is_refused_and_too_large_a_ring_is_left_to_torch(monkeypatch):
    with pytest.raises(ValueError, match="recurrence=triton: runs float32 on a CUDA GPU, not torch.float64"):
        ring_recurrence(*ring_arguments(), backend="triton")
    lines = []
    monkeypatch.setattr(ops, "say_once", lines.append)
    arguments = single(ring_arguments(2, 3, 1, 2, 40, 11))
    found = outcome(ring_recurrence, arguments, "last", backend="triton")
    truth = outcome(ring_recurrence, arguments, "last", backend="reference")
    assert all(distance(a, b) < 2e-6 for a, b in zip(found, truth, strict=True))
    assert lines and lines[0].startswith("recurrence=triton: torch, which is slower, because 2 channels of 40 neurons")
    monkeypatch.setattr(triton_rings, "OLDEST_TRITON", (99, 0))
    assert ops.choose("triton", arguments[2], torch.zeros(2, 2, 3)) == "torch" and "is older than 99.0" in lines[-1]
