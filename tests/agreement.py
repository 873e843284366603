"""What tests of the recurrences share: random arguments, what comes of them, and how far apart two results are."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Arguments = Sequence[Tensor | None]


def ring_arguments(
    batch: int = 3,
    steps: int = 7,
    features: int | None = 2,
    channels: int = 3,
    neurons: int = 5,
    taps: int = 3,
    outputs: int | None = None,
    shared: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    zeros: float = 0.0,
) -> list[Tensor | None]:
    """Random arguments of ring_recurrence; `features` None: a finished drive. Inputs and state are not contiguous.

    `zeros`: which part of the inputs is 0, since kernels leave those out.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    width = channels * neurons if features is None else features
    arguments = [
        draw(1 if shared else batch, width, steps).transpose(1, 2),
        None if features is None else draw(channels, neurons, features, scale=features**-0.5),
        draw(channels, neurons, scale=0.3),
        draw(channels, channels, taps, scale=0.7 / (channels * taps) ** 0.5),
        draw(batch, neurons, channels).transpose(1, 2),
        None if outputs is None else draw(outputs, channels, neurons, scale=(channels * neurons) ** -0.5),
    ]
    inputs = arguments[0]
    if zeros and inputs is not None:
        inputs.mul_(torch.rand(inputs.shape, generator=generator) >= zeros)
    return [None if argument is None else argument.requires_grad_() for argument in arguments]


def draw_ring(draw: random.Random, small: bool) -> tuple[dict[str, Any], str, str, int | None]:
    """Any sizes for `ring_arguments`, what is wanted, the nonlinearity and `store_every`.

    `small`: for Triton's interpreter, which takes a second for five steps.
    """
    neurons = draw.choice(
        [1, 2, 3, 5, 7, 9, 15, 17] if small else [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 65, 130]
    )
    legal = [taps for taps in (1, 3, 5, 7, 9) if taps <= neurons]
    full = [neurons] if neurons % 2 and not (small and neurons > 9) else []
    wants, steps = draw.choice(["states", "readout", "last"]), duration(draw, 5 if small else 60)
    sizes = {
        "batch": draw.choice([1, 2] if small else [1, 2, 3, 5, 6, 17, 33]),
        "steps": steps,
        "features": draw.choice([None, 1, 2, 3, 5, 10, 16, 20]),
        "channels": draw.choice([1, 2, 3, 4, 5, 7, 8, 16, 17]),
        "neurons": neurons,
        "taps": draw.choice([*legal, *full, *full]),
        "outputs": draw.choice([1, 2, 3, 4, 5, 6]) if wants == "readout" else None,
        "shared": draw.random() < 0.3,
        "zeros": draw.choice([0.0, 0.0, 0.5, 0.9]),
        "seed": draw.getrandbits(32),
    }
    return sizes, wants, draw.choice(["relu", "tanh", "identity"]), draw.choice([None, 1, 2, 7, 20, steps + 3])


def duration(draw: random.Random, longest: int) -> int:
    """How many steps: often one or two."""
    return draw.choice([1, 2, *[draw.randint(3, longest)] * 3])


def dense_arguments(
    batch: int = 3, steps: int = 9, features: int | None = 2, neurons: int = 7, seed: int = 0
) -> list[Tensor | None]:
    """Random arguments of dense_recurrence: rings of one neuron each."""
    inputs, input_weight, bias, kernel, state, _ = ring_arguments(batch, steps, features, neurons, 1, 1, seed=seed)
    input_weight = None if input_weight is None else input_weight[:, 0]
    return to([inputs, input_weight, bias[:, 0], kernel[..., 0], state[..., 0]], torch.float64)


def to(arguments: Arguments, dtype: torch.dtype, device: str = "cpu") -> list[Tensor | None]:
    """The same numbers as new leaves, complex ones in its complex dtype; a gradient is required of the same ones."""
    return [
        None
        if a is None
        else a.detach().to(device, dtype.to_complex() if a.is_complex() else dtype).requires_grad_(a.requires_grad)
        for a in arguments
    ]


def outcome(
    function: Callable[..., Sequence[Tensor | None]], arguments: Arguments, wants: str, **options: Any
) -> list[Tensor]:
    """What is returned, then the gradients of a fixed random functional of it."""
    found = [value for value in function(*arguments, wants=wants, **options) if value is not None]
    found = [torch.view_as_real(value) if value.is_complex() else value for value in found]
    loss, generator = torch.zeros((), dtype=found[0].dtype), torch.Generator().manual_seed(1)
    for value in found:
        loss = loss + (value * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)).sum()
    tensors = [argument for argument in arguments if argument is not None and argument.requires_grad]
    gradients: Sequence[Tensor] = [torch.zeros_like(tensor) for tensor in tensors]  # where nothing depends on them
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
    return [*(value.detach() for value in found), *gradients]


def differing_subsets(
    function: Callable[..., Sequence[Tensor | None]], arguments: Arguments, backend: str, bound: float, **options: Any
) -> list[tuple[int, ...]]:
    """Which arguments got a gradient that is not the loop's when these alone required one, or when they did not."""
    given = [index for index, argument in enumerate(arguments) if argument is not None]

    def gradients(learn: Sequence[int], backend: str) -> list[Tensor | None]:
        leaves = [None if a is None else a.detach().requires_grad_(i in learn) for i, a in enumerate(arguments)]
        found = function(*leaves, backend=backend, **options)
        sum(value.square().sum() for value in found if value is not None).backward()
        return [None if leaf is None else leaf.grad for leaf in leaves]

    truth = gradients(given, "reference")
    subsets = [learn for size in range(1, len(given) + 1) for learn in combinations(given, size)]
    return [
        learn
        for learn in subsets
        for i, gradient in enumerate(gradients(learn, backend))
        if (gradient is not None) != (i in learn) or (gradient is not None and not distance(gradient, truth[i]) < bound)
    ]


def distance(found: Tensor, truth: Tensor) -> float:
    """Largest deviation, in units of the largest number, or of 0.1: a lone sum of numbers near 1 may cancel."""
    wide = torch.promote_types(truth.dtype, torch.float64)
    return float((found.to(wide) - truth).abs().max() / truth.abs().max().clamp(min=0.1))


def near_zero(compute: Callable[[], Any]) -> bool:
    """Whether rounding may decide what a ReLU, a sign or a comparison does while this is computed.

    That is, whether any number that one of them sees is within 1e-6 of where it turns, in units of the largest or of 1.
    """
    with torch.no_grad(), _Turning() as seen:
        compute()
    return seen.nearest < 1e-6


class _Turning(TorchDispatchMode):
    """Remembers how near a number comes to where the function that is applied to it turns."""

    OPERATORS = ("aten::relu", "aten::sign", "aten::ge")

    def __init__(self) -> None:
        super().__init__()
        self.nearest = float("inf")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name().split(".")[0] in self.OPERATORS:
            numbers, turn = arguments[0], arguments[1] if len(arguments) > 1 else 0
            self.nearest = min(self.nearest, float((numbers - turn).abs().min() / numbers.abs().max().clamp(min=1)))
        return function(*arguments, **(options or {}))
