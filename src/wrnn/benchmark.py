"""Time of a training step (forward and backward, no optimizer): the loop of the released code against ours.

Variants, all with the same weights, batch and loss:
- `released`: the loop restated from the description of the authors' code (Keller et al. 2024): each step `nn.Linear`
  for the input and circular `nn.Conv1d` (wRNN) or `nn.Linear` (iRNN) for the recurrence, ReLU, ordinary autograd. It
  records nothing, so it is the released code at its fastest.
- `graphed`: the same, its forward and backward replayed as CUDA graphs.
- `eager`: what a user would write instead, the padding by hand and one input product for all steps.
- `compiled`: the released cell under torch.compile.
- `torch`, `cpp`, `triton`: ours, core, readout and objective as a run builds them from the config; `cudnn` is the dense
  core on a GPU. `replayed`: what `auto` takes there, under CUDA graphs. `tf32`: the same with matmul_precision=high.
  A variant that the device or the core does not have is left out. All but the last keep every bit of a float32; torch
  left alone would have cuDNN, and so the released loop's convolution, take TF32.

They take turns within one process, so that a machine that slows down slows all; figures are medians, on a GPU by CUDA
events. GFLOP are those of the recurrence alone (forward once, backward twice), whatever else a variant computes. The
peak is the best of square float32 products of 1,024 to 4,096 (to 8,192 on a GPU), in the same process at the same
thread count. On a GPU the states must also pass the memory once in each direction; "of peak" is then the longer of the
two times, by the measured peaks, over the time taken. GiB are the most that a step takes on the GPU; a graph takes its
memory when it is recorded, and no figure is given.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.config import check, first_line
from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.files import write_json, writing
from wrnn.precision import float32_products
from wrnn.runs import cpu_name, git_state
from wrnn.schema import compose_config
from wrnn.tasks.base import SequenceBatch, Task
from wrnn.tasks.nscifar10 import ROWS, NoisyRows
from wrnn.tasks.synthetic import SyntheticTask
from wrnn.training import Parts, build

OURS = {"torch": "torch", "cpp": "cpp", "triton": "triton", "cudnn": "auto", "replayed": "auto", "tf32": "auto"}
"""Variants that are ours, and their `recurrence`."""

VARIANTS = ("released", "graphed", "eager", *OURS, "compiled")
_DEVICES = {"cpp": "cpu", **dict.fromkeys(("graphed", "triton", "cudnn", "replayed", "tf32"), "cuda")}
_CORES = {"cpp": TravelingWaveRNN, "triton": TravelingWaveRNN, "cudnn": IdentityRNN}
DISTURBED = 0.15
"""A released loop that reaches less than this share of the peak at psMNIST's size ran on a busy machine."""


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` is of the released loop's time, `share` of the peak, nan where there is none.

    `error`: why a variant could not be timed; the others are all the same.
    """

    model: str
    task: str
    variant: str
    batch_size: int
    sequence_length: int
    milliseconds: float
    ratio: float
    gflops: float
    share: float
    memory_gib: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Peak:
    """What the machine reached in products and, if measured, in copies of memory."""

    gflops: float
    gbytes: float = float("inf")


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


class _Whole(nn.Module):
    """A loop, its readout and the loss: (B, T, I) and targets -> a number."""

    def __init__(self, loop: ReleasedLoop, parts: Parts) -> None:
        super().__init__()
        self.loop, self.readout, self.loss = loop, parts.readout, parts.objective.loss

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.readout(self.loop(inputs)), targets)
        return loss


def seconds_of(function: Callable[[], object], device: str) -> float:
    """Time of one call, on a GPU from its first kernel to its last."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    function()
    after.record()
    torch.cuda.synchronize()
    return 1e-3 * before.elapsed_time(after)


def measure_peak(device: str, repeats: int = 4) -> Peak:
    """The best that torch.mm and, on a GPU, a copy reach here."""
    best = Peak(0.0)
    for size in (1024, 2048, 4096, *((8192,) if device == "cuda" else ())):
        a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
        times = [seconds_of(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(repeats)]  # type: ignore[misc]
        best = Peak(max(best.gflops, 2e-9 * size**3 / min(times)))
    if device == "cpu":
        return best
    a, b = torch.empty(2**28, device=device), torch.empty(2**28, device=device)
    copy = min(seconds_of(lambda: b.copy_(a), device) for _ in range(repeats))
    return Peak(best.gflops, 1e-9 * 2 * 4 * 2**28 / copy)


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


def measure(
    model: str, task: str, parts: Parts, variants: tuple[str, ...], repeats: int, peak: Peak, device: str = "cpu"
) -> list[Row]:
    """Time the variants `repeats` times in turn, after two untimed rounds."""
    core, last_only = parts.core, parts.objective.last_only
    assert isinstance(core, TravelingWaveRNN | IdentityRNN)
    parts.module.to(device)
    batch = batch_of(parts.task)
    batch = SequenceBatch(batch.inputs.to(device), batch.targets.to(device), batch.shared_from)
    functions: dict[str, Callable[[], None]] = {}
    for name in variants:
        if device != _DEVICES.get(name, device) or not isinstance(core, _CORES.get(name, object)):
            continue
        if name in OURS:
            functions[name] = _of_module(parts, name, batch)
            continue
        loop = (EagerLoop if name == "eager" else ReleasedLoop)(core, last_only, compiled=name == "compiled").to(device)
        functions[name] = _of_loop(_Whole(loop, parts), batch, name == "graphed")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    failed: dict[str, str] = {}
    memory: dict[str, float] = {}
    for repeat in range(repeats + 2):
        for name, function in functions.items():
            if name in failed:
                continue
            held = 0
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            try:
                with float32_products("high" if name == "tf32" else "highest"):
                    taken = seconds_of(function, device)
            except Exception as error:  # out of memory, say, or a compiler's; the others' figures must not be lost
                failed[name] = first_line(error)
                continue
            if repeat > 1:
                seconds[name].append(taken)
            if device == "cuda" and name not in ("graphed", "replayed"):
                memory[name] = (torch.cuda.max_memory_allocated() - held) / 2**30
            parts.module.zero_grad()
    batch_size, length, _ = batch.inputs.shape
    weights = core.kernel.numel() * core.ring_size if isinstance(core, TravelingWaveRNN) else core.weight.numel()
    gflop = 6e-9 * batch_size * length * weights
    gbytes = 2e-9 * 4 * batch_size * length * core.output_size
    released = statistics.median(seconds.get("released") or [float("nan")])
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times or [float("nan")])
        share = max(gflop / peak.gflops, gbytes / peak.gbytes) / median
        ratio, speed = median / released, gflop / median
        facts = (1e3 * median, ratio, speed, share, memory.get(name), failed.get(name))
        rows.append(Row(model, task, name, batch_size, length, *facts))
    return rows


def _of_loop(whole: _Whole, batch: SequenceBatch, graphed: bool) -> Callable[[], None]:
    recorded = not graphed

    def run() -> None:
        nonlocal recorded
        if not recorded:
            torch.cuda.make_graphed_callables(whole, (batch.inputs.clone(), batch.targets.clone()))
            recorded = True
        whole.loop.zero_grad()
        whole(batch.inputs, batch.targets).backward()

    return run


def _of_module(parts: Parts, name: str, batch: SequenceBatch) -> Callable[[], None]:
    def run() -> None:
        parts.core.recurrence = OURS[name]  # type: ignore[assignment]
        if name == "replayed":
            parts.module.replayed(batch)[0].backward()
        else:
            parts.objective.loss(parts.module(batch.inputs, batch.shared_from), batch.targets).backward()

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
    models = ["wrnn", "irnn"]
    parser.add_argument("--model", nargs="+", default=models, choices=models, help="whose loop; default: both")
    parser.add_argument("--task", nargs="+", default=list(SIZES), choices=list(SIZES), help="sizes to time")
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="what to time")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each variant")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--threads", type=int, help="torch's thread count; default: torch's own choice")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result as JSON")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config overrides")
    options = parser.parse_args(arguments)
    for name in ("repeats", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: must be a whole number of at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch sees no GPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.output and options.output.is_dir():
        parser.error(f"--output={options.output}: is a folder; must be a file")
    pairs = [
        (model, task, compose_config(f"model={model}", *SIZES[task], *options.set))
        for task in options.task
        for model in options.model
    ]
    for _, _, cfg in pairs:
        check(cfg)
    peak = measure_peak(device)
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "git": git_state(),
        "repeats": options.repeats,
        "peak_gflops": peak.gflops,
        "peak_gbytes": peak.gbytes if device == "cuda" else None,
    }
    where = f"{facts['threads']} threads, {facts['cpu']}" if device == "cpu" else facts["gpu"]
    copies = f", copies {peak.gbytes:.0f} GB/s" if device == "cuda" else ""
    print(f"torch {facts['torch']}, {where}, peak {peak.gflops:.0f} GFLOP/s{copies}")
    print(f"one training step without optimizer, median of {options.repeats}; ratio: of the released loop's time")
    heads = f"{'batch':>5} {'steps':>5} {'ms':>8} {'ratio':>6} {'GFLOP/s':>8} {'of peak':>8} {'GiB':>5}"
    print(f"{'model':6} {'task':10} {'variant':9} {heads}")
    rows: list[Row] = []
    for model, task, cfg in pairs:
        found = measure(model, task, build(cfg), tuple(options.variant), options.repeats, peak, device)
        rows += found
        for row in found:
            print(
                f"{model:6} {task:10} {row.variant:9} {row.batch_size:5} {row.sequence_length:5} "
                f"{row.milliseconds:8.1f} {row.ratio:6.3f} {row.gflops:8.0f} {row.share:8.0%} "
                f"{'' if row.memory_gib is None else f'{row.memory_gib:5.1f}'}{row.error or ''}",
                flush=True,
            )
        if options.output:
            measured = [asdict(row) for row in rows]
            with writing(f"--output={options.output}"):
                write_json(options.output, {**facts, "peak_gib": _peak_gib(), "rows": measured})
    disturbed = [row for row in rows if (row.model, row.task, row.variant) == ("wrnn", "psmnist", "released")]
    if device == "cpu" and any(row.share < DISTURBED for row in disturbed):
        print(f"VOID: the released loop reached less than {DISTURBED:.0%} of the peak; the machine was busy")
    print(f"peak memory of the process, all variants: {_peak_gib():.1f} GiB")
    return rows


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
