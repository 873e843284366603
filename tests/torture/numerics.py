"""All ways to compute a recurrence against the readable loop on random configurations, and the worst errors in a table.

    PYTHONPATH=src:tests OMP_NUM_THREADS=1 .venv/bin/python -m torture.numerics --cases 200

A case's path, its number and the seed alone draw its sizes, options and numbers, which of its arguments require a
gradient, how they lie in memory, and which of the results a loss sees; `--path NAME --first N --cases 1` repeats it.
Each path runs in a process of its own, so that a fault in compiled code is one case and not the end.
`recurrence=compile` is left out: the compiler takes a minute a core. Exit code 1 if any case is beyond its bound.
"""

import argparse
import inspect
import math
import multiprocessing
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from agreement import dense_arguments, distance, draw_ring, duration, near_zero, outcome, ring_arguments, to
from conftest import needs_triton, option_names
from wrnn.cores.base import Core
from wrnn.cores.stack import causal_filter
from wrnn.recurrence import dense_recurrence, linear_recurrence, ring_recurrence
from wrnn.schema import compose_config

FLOATS = (torch.float64, torch.float32)
COMPLEX = (torch.complex128, torch.complex64)
EXACT, SINGLE = 1e-12, 4e-6
"""Bounds, in units of `distance`: of 64 bits, and the least of 32 bits, some tens of roundings."""
SIZES = {
    "num_channels": (1, 2, 3, 5), "ring_size": (3, 5, 8, 17, 33), "kernel_size": (1, 3),
    "hidden_size": (3, 4, 8, 17, 33), "rank": (None, 1, 3), "input_rank": (None, 1, 3), "num_layers": (1, 2, 3),
    "num_increments": (1, 2, 3), "biases": ("one", "two"), "block": ("glu", "none"),
    "nonlinearity": ("relu", "tanh", "identity"), "gated": (False, True), "refine": (False, True),
    "coupling": ("torus", "rings", "uncoupled"), "layer.num_units": (1, 4, 9), "layer.state_size": (2, 6, 16),
    "layer.expansion": (0.5, 1.0, 2.0),
}  # fmt: skip
"""What a core's options are drawn from, where it has them."""
EASED = {
    # It divides by the modulus of its units: near 0 the gradient depends so much on the last digit that two ways of
    # rounding need not be equally lucky.
    "core urnn": 10,
    # An FFT rounds in proportion to the whole signal, also where what is asked of it is a sum that nearly cancels.
    "linear fft": 5,
}
"""How many times wider the bounds of some paths are."""
PLACES = ("num_places", "layer.num_places")
"""Those that the length of the sequence limits."""

Function = Callable[..., Any]


@dataclass
class Problem:
    """One configuration: two functions of the same arguments that must agree, and what to say about it."""

    fast: Function
    loop: Function
    arguments: list[Tensor | None]
    wants: str
    sizes: dict[str, Any]
    autocast: bool = False
    traits: list[str] = field(default_factory=list)

    def outcome(self, function: Function) -> list[Tensor]:
        return outcome(function, self.arguments, self.wants)


Make = Callable[[random.Random, torch.dtype, torch.dtype], Problem]
"""From what draws a case, the dtype that its numbers are rounded to, and the dtype that holds them."""


@dataclass
class Verdict:
    """How far off one case was, or why it was not held to its bound."""

    value: float = 0.0
    gradient: float = 0.0
    allowed: float = math.inf
    skipped: bool = False
    wrong: str = ""
    traits: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------ configurations


def laid_out(draw: random.Random, tensor: Tensor | None) -> Tensor | None:
    """The same numbers elsewhere in memory: as they were, without gaps, between NaNs, or behind one."""
    if tensor is None:
        return None
    nan = torch.full((), math.nan, dtype=tensor.dtype)
    way = draw.randrange(4)
    if way == 1:
        return tensor.detach().contiguous()
    if way == 2:
        return torch.stack([tensor.detach(), nan.expand_as(tensor)], dim=-1)[..., 0]
    if way == 3:
        return torch.cat([nan[None], tensor.detach().flatten()])[1:].view_as(tensor)
    return tensor.detach()


def learn(draw: random.Random, arguments: list[Tensor | None]) -> list[int]:
    """Let all arguments, or as often as not only some of them, require a gradient; return which."""
    given = [index for index, argument in enumerate(arguments) if argument is not None]
    some = given if draw.random() < 0.4 else sorted(draw.sample(given, draw.randint(1, len(given))))
    for index, argument in enumerate(arguments):
        if argument is not None:
            argument.requires_grad_(index in some)
    return some


def seen(function: Function, which: tuple[bool, ...]) -> Function:
    """The function with some of its results alone."""
    return lambda *arguments, **options: [
        value for value, kept in zip(function(*arguments, **options), which, strict=True) if kept
    ]


def ring(backend: str, draw: random.Random, rounded: torch.dtype, dtype: torch.dtype) -> Problem:
    """A recurrence on rings; Triton's are few and small."""
    sizes, wants, nonlinearity, every = draw_ring(draw, backend == "triton")
    steps, neurons = sizes["steps"], sizes["neurons"]
    arguments = [laid_out(draw, argument) for argument in to(to(ring_arguments(**sizes), rounded), dtype)]
    if draw.random() < 0.2:  # one state for all
        arguments[4] = arguments[4][:1].expand(sizes["batch"], -1, -1)
    some = learn(draw, arguments)
    which = (True, False) if wants == "last" else draw.choice([(True, True), (True, False), (False, True)])
    both = partial(ring_recurrence, nonlinearity=nonlinearity)
    autocast = draw.random() < 0.2
    traits = {
        "T=1": steps == 1, "B=1": sizes["batch"] == 1, "C=1": sizes["channels"] == 1, "N<8": neurons < 8,
        "odd N": neurons % 2, "K=N": sizes["taps"] == neurons, wants: True, nonlinearity: True,
        f"store_every={'>T' if every == steps + 3 else every}": True, "shared inputs": sizes["shared"],
        "some arguments learn": len(some) < sum(argument is not None for argument in arguments),
        "a loss of one result": which != (True, True) and wants != "last", "autocast": autocast,
    }  # fmt: skip
    return Problem(
        seen(partial(both, backend=backend, store_every=every), which),
        seen(partial(both, backend="reference"), which),
        arguments,
        wants,
        sizes | {"wants": wants, "nonlinearity": nonlinearity, "store_every": every, "learn": some, "seen": which},
        autocast,
        [trait for trait, holds in traits.items() if holds],
    )


def dense(draw: random.Random, rounded: torch.dtype, dtype: torch.dtype) -> Problem:
    """A dense recurrence."""
    sizes = {
        "batch": draw.choice([1, 2, 3, 5, 17, 33]),
        "steps": duration(draw, 60),
        "features": draw.choice([None, 1, 2, 5, 20]),
        "neurons": draw.choice([1, 2, 3, 7, 8, 16, 17, 33, 65]),
        "seed": draw.getrandbits(32),
    }
    wants, nonlinearity = draw.choice(["states", "last"]), draw.choice(["relu", "tanh", "identity"])
    arguments = [laid_out(draw, argument) for argument in to(to(dense_arguments(**sizes), rounded), dtype)]
    some = learn(draw, arguments)
    which = (True, False) if wants == "last" else draw.choice([(True, True), (True, False), (False, True)])
    both = partial(dense_recurrence, nonlinearity=nonlinearity)
    return Problem(
        seen(partial(both, backend="torch"), which),
        seen(partial(both, backend="reference"), which),
        arguments,
        wants,
        sizes | {"wants": wants, "nonlinearity": nonlinearity, "learn": some, "seen": which},
        draw.random() < 0.2,
    )


def linear(method: str, draw: random.Random, rounded: torch.dtype, dtype: torch.dtype) -> Problem:
    """A linear recurrence with decays up to 1, of which some are 0 and some are 1."""
    batch, units = draw.choice([1, 2, 5]), draw.choice([1, 2, 3, 8, 17])
    steps = duration(draw, 70)
    fixed, seed = draw.random() < 0.5, draw.getrandbits(32)
    generator, wide = torch.Generator().manual_seed(seed), torch.complex128 if dtype.is_complex else torch.float64

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=wide)

    decay = normal(units) if fixed else normal(batch, steps, units)
    length = (1.4 * torch.rand(decay.shape, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1)
    given = [decay.sgn() * length, normal(batch, steps, units), normal(batch, units)]
    arguments = [laid_out(draw, argument) for argument in to(to(given, rounded), dtype)]
    some = learn(draw, arguments)
    return Problem(
        lambda decay, drive, state, wants: [linear_recurrence(decay, drive, state, method)],
        readable_linear,
        arguments,
        "states",
        {"batch": batch, "steps": steps, "units": units, "fixed": fixed, "seed": seed, "learn": some},
        draw.random() < 0.2,
    )


def readable_linear(decay: Tensor, drive: Tensor, state: Tensor, wants: str) -> list[Tensor]:
    """The linear recurrence as it is written."""
    states = []
    for t in range(drive.shape[1]):
        state = (decay if decay.ndim == 1 else decay[:, t]) * state + drive[:, t]
        states.append(state)
    return [torch.stack(states, dim=1)]


def filtered(draw: random.Random, rounded: torch.dtype, dtype: torch.dtype) -> Problem:
    """A causal filter, through the FFT and as a sum over what has been."""
    batch, steps = draw.choice([1, 2, 5]), duration(draw, 70)
    size, length, seed = draw.choice([1, 2, 5]), draw.choice([1, 2, draw.randint(3, 90)]), draw.getrandbits(32)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, steps, size, generator=generator, dtype=torch.float64)
    kernel = length**-0.5 * torch.randn(size, length, generator=generator, dtype=torch.float64)
    arguments = [laid_out(draw, argument) for argument in to(to([features, kernel], rounded), dtype)]
    some = learn(draw, arguments)
    return Problem(
        lambda features, kernel, wants: [causal_filter(features, kernel)],
        readable_filter,
        arguments,
        "states",
        {"batch": batch, "steps": steps, "features": size, "length": length, "seed": seed, "learn": some},
    )


def readable_filter(features: Tensor, kernel: Tensor, wants: str) -> list[Tensor]:
    """A causal filter as it is written."""
    reach = range(min(kernel.shape[1], features.shape[1]))
    return [
        torch.stack(
            [
                sum(kernel[:, past] * features[:, t - past] for past in reach if past <= t)
                for t in range(len(features[0]))
            ],
            dim=1,
        )
    ]


@cache
def cores() -> dict[str, DictConfig]:
    """The cores that have a step, each kind once, as their options of the model group give them."""
    found, kinds = {}, set()
    for model in option_names("model"):
        cfg = compose_config(f"model={model}", "task=adding", "init=pytorch", "input_init=pytorch")
        node = OmegaConf.create(OmegaConf.to_container(cfg.model.core, resolve=True))
        kind = (node._target_, OmegaConf.select(node, "layer._target_"))
        if kind not in kinds and "flextcn" not in node._target_:  # which has no step
            found[model] = node
        kinds.add(kind)
    return found


def of_core(model: str, draw: random.Random, rounded: torch.dtype, dtype: torch.dtype) -> Problem:
    """A core's whole sequence against its steps one by one."""
    node, steps = cores()[model].copy(), duration(draw, 40)
    batch, features, seed = draw.choice([1, 2, 5]), draw.choice([1, 2, 5]), draw.getrandbits(32)
    options = {key: draw.choice(choices) for key, choices in SIZES.items() if has(node, key)}
    options |= {key: draw.choice([None, draw.randint(1, steps)]) for key in PLACES if has(node, key)}
    if options.get("coupling", "uncoupled") != "uncoupled":
        options["hidden_size"] = draw.choice([9, 16, 36])  # a square
    for key, value in options.items():
        OmegaConf.update(node, key, value)
    torch.manual_seed(seed)
    facts = {"input_size": features, "sequence_length": steps}
    asked = inspect.signature(get_object(node._target_)).parameters
    facts = {key: fact for key, fact in facts.items() if key in asked}
    core = instantiate(node, _convert_="all", **facts).double().eval()
    with torch.no_grad():
        for weight in core.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 4
            weight.copy_(0.7 * fan_in**-0.5 * torch.randn(weight.shape, dtype=torch.float64))
    past, inputs = torch.randn(2, batch, steps, features, dtype=torch.float64)
    starts = parts(Core.forward(core, past)[1]) if draw.random() < 0.5 else ()
    arguments = [laid_out(draw, argument) for argument in to(to([inputs, *starts], rounded), dtype)]
    weights = list(core.to(rounded).to(dtype).parameters())
    some = learn(draw, together := [*arguments, *weights])
    last_only, again = draw.random() < 0.3, draw.random() < 0.5

    def run(forward: Function, inputs: Tensor, *tensors: Tensor, wants: str) -> list[Tensor]:
        state = tensors[: len(starts)]
        start = None if not state else state[0] if isinstance(core.initial_state(1), Tensor) else state
        outputs, last = forward(inputs, start, last_only=wants == "last")
        return [outputs, *parts(last)]

    def in_parts(*tensors: Tensor, wants: str) -> list[Tensor]:
        """Every third state kept, the others computed again, where the core is a loop."""
        with patch("wrnn.cores.base.states_to_keep", lambda *_: 3) if again else nullcontext():
            return run(core, *tensors, wants=wants)

    sizes = {"batch": batch, "steps": steps, "features": features, **options, "seed": seed, "state": bool(starts)}
    return Problem(
        in_parts,
        partial(run, partial(Core.forward, core)),
        together,
        "last" if last_only else "states",
        sizes | {"last_only": last_only, "in parts": again, "learn": some},
    )


def has(node: DictConfig, key: str) -> bool:
    """Whether there is such a key, be it null."""
    above, _, last = key.rpartition(".")
    holder = OmegaConf.select(node, above) if above else node
    return holder is not None and last in holder


def parts(state: Any) -> tuple[Tensor, ...]:
    """The tensors of a state."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


@dataclass(frozen=True)
class Path:
    """A way to compute.

    Attributes:
        make: its configurations.
        dtypes: those it is held in.
        part: it gets one case where others get so many.
        eased: how many times wider its bounds are.
    """

    make: Make
    dtypes: tuple[torch.dtype, ...] = FLOATS
    part: int = 1
    eased: int = 1


@cache
def paths() -> dict[str, Path]:
    """All that are held against a readable loop."""
    found = {f"ring {backend}": Path(partial(ring, backend)) for backend in ("torch", "cpp")}
    if not needs_triton.args[0]:
        found["ring triton"] = Path(partial(ring, "triton"), (torch.float32,), 20)
    found["dense torch"] = Path(dense)
    for method in ("loop", "scan"):
        found[f"linear {method}"] = Path(partial(linear, method), (*FLOATS, *COMPLEX))
    found["linear fft"] = Path(filtered)
    found |= {f"core {model}": Path(partial(of_core, model), part=20) for model in cores()}
    return {name: replace(path, eased=EASED.get(name, 1)) for name, path in found.items()}


# ------------------------------------------------------------------------------------------------------------- verdicts


def judge(name: str, seed: int, number: int, dtype: torch.dtype) -> Verdict:
    """Compute one case in every way and say how far off the fast one is."""
    exact, given = (problem(name, seed, number, dtype, held) for held in (wide(dtype), dtype))
    truth, allowed, eased = exact.outcome(exact.loop), EXACT, paths()[name].eased
    if dtype != wide(dtype):
        if near_zero(lambda: exact.loop(*exact.arguments, wants=exact.wants)):
            return Verdict(skipped=True, traits=exact.traits)
        allowed = max(4 * farthest(given.outcome(given.loop), truth), SINGLE)
    found = given.outcome(given.fast)
    values = len(truth) - sum(argument is not None and argument.requires_grad for argument in given.arguments)
    with torch.no_grad():
        alone = given.outcome(given.fast)[:values]
    for mine, true in zip([*found, *alone], [*truth, *truth[:values]], strict=True):
        right = true.shape, dtype.to_complex() if true.is_complex() else dtype.to_real()
        if (mine.shape, mine.dtype) != right:
            return Verdict(wrong=f"{mine.dtype} of shape {tuple(mine.shape)} instead of {tuple(true.shape)}")
    verdict = Verdict(
        max(farthest(found[:values], truth), farthest(alone, truth)),
        farthest(found[values:], truth[values:]),
        eased * allowed,
        traits=exact.traits,
    )
    if max(verdict.value, verdict.gradient) > verdict.allowed:
        far = f"value off by {verdict.value:.1e}, gradient by {verdict.gradient:.1e}"
        verdict.wrong = f"{far}, allowed {verdict.allowed:.1e}"
    elif given.autocast and not all(map(torch.equal, given.outcome(autocasted(given.fast)), found)):
        verdict.wrong = "another result under autocast"
    return verdict


def farthest(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest of the distances, infinite where one is NaN."""
    distances = map(distance, found, truth)
    return max(math.inf if math.isnan(far) else far for far in distances)


def problem(name: str, seed: int, number: int, rounded: torch.dtype, dtype: torch.dtype) -> Problem:
    """Draw one case; `rounded` is the dtype of its numbers, `dtype` the one that they are held in."""
    return paths()[name].make(random.Random(f"{seed} {name} {number}"), rounded, dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the truth."""
    return torch.promote_types(dtype, torch.float64)


def autocasted(function: Function) -> Function:
    """The function under autocast; its backward is outside, where autocast should be left."""

    def run(*arguments: Tensor | None, **options: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*arguments, **options)

    return run


def work(sender: Connection, name: str, seed: int, cases: list[tuple[torch.dtype, int]]) -> None:
    """In a process of its own: send the verdict on each case."""
    torch.set_num_threads(1)
    for dtype, number in cases:
        try:
            verdict = judge(name, seed, number, dtype)
        except Exception as error:  # the others go on
            verdict = Verdict(wrong=f"{type(error).__name__}: {error}".splitlines()[0])
        sender.send(verdict)


def verdicts(name: str, seed: int, numbers: range) -> Iterator[tuple[torch.dtype, int, Verdict]]:
    """The verdict on each case; one that ends its process is one case, and the others go on."""
    context = multiprocessing.get_context("fork")
    cases = [(dtype, number) for dtype in paths()[name].dtypes for number in numbers]
    while cases:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(sender, name, seed, cases))
        child.start()
        sender.close()
        while cases:
            try:
                verdict = receiver.recv()
            except EOFError:
                child.join()
                yield *cases.pop(0), Verdict(wrong=f"the process ended with code {child.exitcode}")
                break
            yield *cases.pop(0), verdict
        child.join()


def main() -> None:
    """Judge the cases that were asked for and print a table."""
    parser = argparse.ArgumentParser(prog="torture.numerics", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200, metavar="N", help="of each path; slow ones get N / 20")
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="number of the first case, to repeat one")
    parser.add_argument("--path", default="", help="only paths with this in their name")
    parser.add_argument("--seed", type=int, default=0, help="of what the cases draw")
    options = parser.parse_args()
    asked = {name: path for name, path in paths().items() if options.path in name}
    if not asked or options.cases < 1:
        parser.error(f"nothing to do: at least 1 case of one of: {', '.join(paths())}")
    print(f"{'':24}{'dtype':12}{'cases':>6}{'skipped':>9}{'value':>10}{'gradient':>10}{'bound':>9}{'of bound':>10}")
    wrong, had = 0, {}
    for name, path in asked.items():
        rows: dict[torch.dtype, list[Verdict]] = {}
        numbers = range(options.first, options.first + math.ceil(options.cases / path.part))
        for dtype, number, verdict in verdicts(name, options.seed, numbers):
            rows.setdefault(dtype, []).append(verdict)
            if verdict.wrong:
                sizes = problem(name, options.seed, number, dtype, dtype).sizes
                print(f"{name} {short(dtype)} {number}: {verdict.wrong}: {sizes}", flush=True)
        for dtype, found in rows.items():
            held = [verdict for verdict in found if not verdict.skipped]
            value, gradient = (max((getattr(v, what) for v in held), default=0) for what in ("value", "gradient"))
            share = max((max(verdict.value, verdict.gradient) / verdict.allowed for verdict in held), default=0)
            bound = f"{path.eased * EXACT:.0e}" if dtype == wide(dtype) else f"{4 * path.eased} loop"
            count = f"{len(found):6}{len(found) - len(held):9}"
            print(f"{name:24}{short(dtype):12}{count}{value:10.1e}{gradient:10.1e}{bound:>9}{share:10.2g}", flush=True)
        wrong += sum(bool(verdict.wrong) for found in rows.values() for verdict in found)
        had[name] = Counter(trait for verdict in rows[path.dtypes[0]] for trait in verdict.traits)
    print("\nvalue, gradient: largest error in units of the largest number of a tensor, or of 0.1")
    print(f"4 loop: 4 times that of the readable loop in the same dtype, or {SINGLE:.0e} if that is more")
    print("skipped: where rounding may decide on which side of 0 a unit falls")
    for name, traits in had.items():
        if traits:
            print(f"{name} had: {', '.join(f'{trait} {count}' for trait, count in sorted(traits.items()))}")
    sys.exit(wrong > 0)


def short(dtype: torch.dtype) -> str:
    """Its name."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
