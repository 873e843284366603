"""Starts: what they write, and that the same start means the same on a ring and on a matrix."""

import pytest
import torch

from wrnn.inits import Initializer, identity_, normal_, ones_, shift_, source_identity_
from wrnn.recurrence import dense_recurrence, ring_recurrence


@pytest.mark.parametrize(("start", "velocity"), [("shift", 1.0), ("shift", 0.25), ("identity", None)])
def test_ring_and_matrix_agree(start: str, velocity: float | None) -> None:
    def apply(weight: torch.Tensor) -> torch.Tensor:
        return identity_(weight) if velocity is None else shift_(weight, velocity)

    kernel, matrix = apply(torch.rand(1, 1, 5, dtype=torch.float64)), apply(torch.rand(8, 8, dtype=torch.float64))
    drive = torch.rand(2, 6, 8, dtype=torch.float64)
    ring = ring_recurrence(drive, None, drive.new_zeros(1, 8), kernel, drive.new_zeros(2, 1, 8)).every_step
    dense = dense_recurrence(drive, None, drive.new_zeros(8), matrix, drive.new_zeros(2, 8)).every_step
    torch.testing.assert_close(ring[:, :, 0], dense)


def test_input_starts() -> None:
    assert torch.equal(ones_(torch.rand(2, 3, 2)).nonzero(), torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]))
    assert torch.equal(source_identity_(torch.rand(2, 3, 3)).nonzero(), torch.tensor([[0, 0, 0], [0, 0, 2], [1, 0, 1]]))
    assert 0.0008 < float(normal_(torch.empty(10_000), 0.001).std()) < 0.0012


def test_the_default_start_is_uniform_within_its_bound() -> None:
    weight, bias = torch.empty(50, 50), torch.empty(50)
    Initializer(bias="pytorch")(weight, bias, fan_in=25)
    for tensor in (weight, bias):
        assert 0.15 < float(tensor.abs().max()) <= 0.2
    Initializer()(weight, bias, fan_in=25)
    assert not bias.any()


@pytest.mark.parametrize("velocity", [-0.1, 1.5, "fast"])
def test_a_velocity_outside_its_range_is_refused(velocity: object) -> None:
    with pytest.raises(ValueError, match=r"init.weight.velocity=.*\[0, 1\]"):
        shift_(torch.empty(1, 1, 3), velocity)


def test_an_unknown_bias_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="bias='ones': must be one of zero, pytorch"):
        Initializer(bias="ones")
