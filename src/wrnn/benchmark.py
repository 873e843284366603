"""Time of a training step (forward and backward, no optimizer): the loop of the released code against ours.

Variants, all with the same weights, batch and loss:
- `released`: the loop restated from the description of the authors' code (Keller et al. 2024): each step `nn.Linear`
  for the input and circular `nn.Conv1d` (wRNN) or `nn.Linear` (iRNN) for the recurrence, ReLU, ordinary autograd. It
  records nothing, so it is the released code at its fastest.
- `eager`: what a user would write instead, the padding by hand and one input product for all steps.
- `compiled`: the released cell under torch.compile.
- `torch`, `cpp`: ours, core, readout and objective as a run builds them from the config.

They take turns within one process, so that a machine that slows down slows all; figures are medians. GFLOP are those of
the recurrence alone (forward once, backward twice), whatever else a variant computes. The peak is the best of square
float32 products of 1,024 to 4,096, in the same process at the same thread count.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from wrnn import schema
from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.runs import cpu_name, git_state
from wrnn.tasks.base import SequenceBatch, Task
from wrnn.tasks.nscifar10 import ROWS, NoisyRows
from wrnn.tasks.synthetic import SyntheticTask
from wrnn.training import Parts, build

CONF = Path(__file__).parents[2] / "conf"
VARIANTS = ("released", "eager", "compiled", "torch", "cpp")
DISTURBED = 0.15
"""A released loop that reaches less than this share of the peak at psMNIST's size ran on a busy machine."""


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` is of the released loop's time, `share` of the peak; 0 where there is none."""

    model: str
    task: str
    variant: str
    batch_size: int
    sequence_length: int
    milliseconds: float
    ratio: float
    gflops: float
    share: float


class ReleasedLoop(nn.Module):
    """The loop over time steps under autograd, with the weights of a core: (B, T, I) -> (B, T, O), or (B, O)."""

    def __init__(self, core: TravelingWaveRNN | IdentityRNN, last_only: bool, compiled: bool = False) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = core.ring_shape or (core.output_size,)
        self.last_only = last_only
        self.input_map = nn.Linear(core.input_size, core.output_size)
        self.input_map.load_state_dict(core.input_map.state_dict())
        if isinstance(core, TravelingWaveRNN):
            channels, taps = core.num_channels, core.kernel_size
            self.recurrence: nn.Module = nn.Conv1d(channels, channels, taps, padding=taps // 2, padding_mode="circular")
            self.recurrence.load_state_dict({"weight": core.kernel, "bias": core.bias})
        else:
            self.recurrence = nn.Linear(core.hidden_size, core.hidden_size)
            self.recurrence.load_state_dict({"weight": core.weight, "bias": core.bias})
        self.step = torch.compile(self.cell) if compiled else self.cell

    def cell(self, inputs: Tensor, state: Tensor) -> Tensor:
        """One time step: (B, I) and a state -> the next."""
        return torch.relu(self.recurrence(state) + self.input_map(inputs).view(state.shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the cell once per time step."""
        state = inputs.new_zeros(len(inputs), *self.shape)
        states = []
        for inputs_BI in inputs.unbind(1):
            state = self.step(inputs_BI, state)
            if not self.last_only:
                states.append(state.flatten(1))
        return state.flatten(1) if self.last_only else torch.stack(states, dim=1)


class EagerLoop(ReleasedLoop):
    """The same, written with some care: both biases and the inputs in one product, the ring padded by hand."""

    def forward(self, inputs: Tensor) -> Tensor:
        """As `ReleasedLoop`."""
        own = self.recurrence
        assert isinstance(own, nn.Conv1d | nn.Linear) and own.bias is not None
        bias = self.input_map.bias.view(self.shape) + (own.bias[:, None] if isinstance(own, nn.Conv1d) else own.bias)
        drive = F.linear(inputs, self.input_map.weight, bias.flatten())
        state, states = inputs.new_zeros(len(inputs), *self.shape), []
        for drive_BN in drive.unbind(1):
            if isinstance(own, nn.Conv1d):
                half = own.kernel_size[0] // 2
                around = F.conv1d(torch.cat([state[..., -half:], state, state[..., :half]], -1), own.weight)
            else:
                around = F.linear(state, own.weight)
            state = torch.relu(around + drive_BN.view(state.shape))
            if not self.last_only:
                states.append(state.flatten(1))
        return state.flatten(1) if self.last_only else torch.stack(states, dim=1)


def peak_gflops(repeats: int = 4) -> float:
    """The best that torch.mm reaches here."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = torch.randn(size, size), torch.randn(size, size)
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2e-9 * size**3 / (time.perf_counter() - start))
    return best


def batch_of(task: Task) -> SequenceBatch:
    """A training batch of the task; for image tasks random pixels and labels, so that no data are needed."""
    if isinstance(task, SyntheticTask):
        return task.make_batch("train", 0, 0)
    targets = torch.randint(task.output_size, (task.batch_size,))
    if isinstance(task, NoisyRows):
        pictures = torch.rand(task.batch_size, ROWS, task.input_size)
        return SequenceBatch(task.to_inputs(pictures, "train", 0, 0), targets, task.shared_from)
    pixels = torch.rand(task.batch_size, task.sequence_length, task.input_size)
    return SequenceBatch(pixels * (torch.rand_like(pixels) < 0.2), targets)  # four of five pixels of MNIST are 0


def measure(model: str, task: str, parts: Parts, variants: tuple[str, ...], repeats: int, peak: float) -> list[Row]:
    """Time the variants `repeats` times in turn, after two untimed rounds."""
    core, last_only = parts.core, parts.objective.last_only
    if not isinstance(core, TravelingWaveRNN | IdentityRNN):
        raise ValueError(f"model={model}: the released code has no such loop; use wrnn or irnn")
    batch = batch_of(parts.task)
    loops = {
        "released": lambda: ReleasedLoop(core, last_only),
        "eager": lambda: EagerLoop(core, last_only),
        "compiled": lambda: ReleasedLoop(core, last_only, compiled=True),
    }
    functions: dict[str, Callable[[], Tensor]] = {}
    for name in variants:
        if name in loops:
            functions[name] = _of_loop(parts.readout, loops[name](), batch)
        elif not (name == "cpp" and isinstance(core, IdentityRNN)):  # cpp is torch there
            functions[name] = _of_module(parts, name, batch)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            parts.objective.loss(function(), batch.targets).backward()
            if repeat > 1:
                seconds[name].append(time.perf_counter() - start)
            parts.module.zero_grad()
    batch_size, length, _ = batch.inputs.shape
    weights = core.kernel.numel() * core.ring_size if isinstance(core, TravelingWaveRNN) else core.weight.numel()
    gflop = 6e-9 * batch_size * length * weights
    released = statistics.median(seconds["released"]) if "released" in seconds else float("nan")
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        speed = gflop / median
        rows.append(Row(model, task, name, batch_size, length, 1e3 * median, median / released, speed, speed / peak))
    return rows


def _of_loop(readout: nn.Module, loop: ReleasedLoop, batch: SequenceBatch) -> Callable[[], Tensor]:
    def run() -> Tensor:
        loop.zero_grad()
        return readout(loop(batch.inputs))

    return run


def _of_module(parts: Parts, backend: str, batch: SequenceBatch) -> Callable[[], Tensor]:
    def run() -> Tensor:
        parts.core.recurrence = backend  # type: ignore[assignment]
        return parts.module(batch.inputs, batch.shared_from)

    return run


# name in the table, overrides
SIZES = {
    "psmnist": ["task=psmnist"],
    "adding": ["task=adding", "task.datamodule.sequence_length=1000"],
    "copy100": ["task=copy", "task.datamodule.delay=100"],
    "copy480": ["task=copy", "task.datamodule.delay=480"],
    "nscifar10": ["task=nscifar10", "task.datamodule.batch_size=128"],
}
"""The paper's tasks at the sizes that are timed."""


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse the command line, measure, print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description="The released loop against ours: one training step.")
    parser.add_argument("--model", nargs="+", default=["wrnn", "irnn"], help="options of the model group")
    parser.add_argument("--task", nargs="+", default=list(SIZES), choices=list(SIZES), help="sizes to time")
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="what to time")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, help="torch's thread count; default: torch's own choice")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result as JSON")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config overrides")
    options = parser.parse_args(arguments)
    for name in ("repeats", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: must be a whole number of at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    peak = peak_gflops()
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "git": git_state(),
        "repeats": options.repeats,
        "peak_gflops": peak,
    }
    print(f"torch {facts['torch']}, {facts['threads']} threads, {facts['cpu']}, peak {peak:.0f} GFLOP/s")
    print(f"one training step without optimizer, median of {options.repeats}; ratio: of the released loop's time")
    heads = f"{'batch':>5} {'steps':>5} {'ms':>7} {'ratio':>6} {'GFLOP/s':>8} {'of peak':>8}"
    print(f"{'model':6} {'task':10} {'variant':9} {heads}")
    schema.register()
    rows: list[Row] = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for task in options.task:
            for model in options.model:
                parts = build(compose("config", [f"model={model}", *SIZES[task], *options.set]))
                found = measure(model, task, parts, tuple(options.variant), options.repeats, peak)
                rows += found
                for row in found:
                    print(
                        f"{model:6} {task:10} {row.variant:9} {row.batch_size:5} {row.sequence_length:5} "
                        f"{row.milliseconds:7.0f} {row.ratio:6.2f} {row.gflops:8.0f} {row.share:8.0%}",
                        flush=True,
                    )
                if options.output:
                    _write(options.output, facts, rows)
    disturbed = [row for row in rows if (row.model, row.task, row.variant) == ("wrnn", "psmnist", "released")]
    if any(row.share < DISTURBED for row in disturbed):
        print(f"VOID: the released loop reached less than {DISTURBED:.0%} of the peak; the machine was busy")
    print(f"peak memory of the process, all variants: {_peak_gib():.1f} GiB")
    return rows


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _write(path: Path, facts: dict[str, object], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {**facts, "peak_gib": _peak_gib(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(result, indent=2) + "\n")
