"""What every core promises, held against every option of the model group, in evaluation mode."""

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from conftest import Compose, option_names
from wrnn.cores.base import Core, WholeSequenceCore
from wrnn.training import build

MODELS = option_names("model")
SMALL = {
    "num_channels": 3, "ring_size": 7, "hidden_size": 9, "rank": 4, "input_rank": 4, "num_blocks": 1, "num_layers": 2,
    "kernel_hidden_size": 3, "layer.num_units": 5, "layer.state_size": 6, "num_places": 8, "layer.num_places": 8,
}  # fmt: skip
START = "init=pytorch"


def has(node: DictConfig, key: str) -> bool:
    """Whether there is such a key, be it null."""
    *above, last = key.split(".")
    holder = OmegaConf.select(node, above[0]) if above else node
    return holder is not None and last in holder


def make_core(compose_config: Compose, model: str, seed: int = 0) -> Core:
    """The option's core, small where it has a size, with random weights so that nothing cancels."""
    node = compose_config(f"model={model}").model.core
    sizes = [f"model.core.{key}={value}" for key, value in SMALL.items() if has(node, key)]
    start = [START] if "init" in node else []
    cfg = compose_config(f"model={model}", "task=adding", *start, *sizes, f"seed={seed}")
    core = build(cfg).core.requires_grad_().double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in core.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return core


@pytest.fixture(params=MODELS)
def core(request: pytest.FixtureRequest, compose_config: Compose) -> Core:
    return make_core(compose_config, request.param)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(3, 11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_forward_equals_repeated_step(core: Core, inputs: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(core, WholeSequenceCore):
        pytest.skip("a whole-sequence core has no step")
    # Inputs mapped for four steps at once, every third state kept, the others computed again: parts of 3, 3, 3 and 2.
    monkeypatch.setattr("wrnn.cores.base.MAPPED_AT_ONCE", 4 * len(inputs) * 8 * core.state_size)
    monkeypatch.setattr("wrnn.cores.base.states_to_keep", lambda steps, bytes_a_step, device: 3)
    outputs, state = core(inputs)
    expected, expected_state = Core.forward(core, inputs)
    if list(core.parameters()):
        gradients = [torch.autograd.grad(o.square().sum(), list(core.parameters())) for o in (outputs, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)  # they span some orders of magnitude
    assert outputs.shape == (3, 11, core.output_size)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected_state, rtol=1e-12, atol=1e-12)
    last, last_state = core(inputs, last_only=True)
    torch.testing.assert_close(last, expected[:, -1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_state, expected_state, rtol=1e-12, atol=1e-12)


def test_halves_with_a_carried_state_equal_the_whole(core: Core, inputs: torch.Tensor) -> None:
    if isinstance(core, WholeSequenceCore):
        pytest.skip("a whole-sequence core carries nothing over")
    whole, end = core(inputs)
    first, middle = core(inputs[:, :4])
    second, end_again = core(inputs[:, 4:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end_again, end, rtol=1e-12, atol=1e-12)


def test_sequences_of_a_batch_do_not_meet(core: Core, inputs: torch.Tensor) -> None:
    alone = torch.cat([core(inputs[[i]])[0] for i in (2, 0, 1)])
    torch.testing.assert_close(core(inputs[[2, 0, 1]])[0], alone, rtol=1e-12, atol=1e-12)


def test_a_core_says_whether_training_changes_its_outputs(core: Core, inputs: torch.Tensor) -> None:
    expected = core(inputs)[0]
    core.train()
    torch.manual_seed(0)
    found = torch.cat([core(inputs[[index]])[0] for index in range(len(inputs))])
    assert core.is_deterministic == torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_parameter(core: Core, inputs: torch.Tensor) -> None:
    if not list(core.parameters()):
        pytest.skip("a core that learns nothing")
    core(inputs)[0].square().sum().backward()
    for name, weight in core.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_gradcheck(core: Core, inputs: torch.Tensor) -> None:
    def last_output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return core(x, last_only=True)[0]

    assert torch.autograd.gradcheck(last_output, (inputs[:2, :4].clone().requires_grad_(), *core.parameters()))
