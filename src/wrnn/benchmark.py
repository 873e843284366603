"""Time of a training step (forward and backward): the loop of the released code against `wrnn.recurrence`.

The loop is restated from the description of the authors' code (Keller et al. 2024): a module called once per time
step, `nn.Linear` for the input and circular `nn.Conv1d` (wRNN) or `nn.Linear` (iRNN) for the recurrence, ReLU, ordinary
autograd, linear readout, cross-entropy (adding: mean squared error). It records nothing, so it is the
released code at its fastest.
Both variants have equal sizes, batches and losses and run in turn within one process, so that a machine that slows down
slows both; figures are medians over the repeats.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrnn.recurrence import dense_recurrence, ring_recurrence


@dataclass(frozen=True)
class Workload:
    """Sizes of one training step. `every_step`: the readout and the loss stand at every step (else at the last)."""

    input_size: int
    sequence_length: int
    batch_size: int
    num_channels: int
    ring_size: int
    hidden_size: int  # of the iRNN
    output_size: int
    every_step: bool = False


WORKLOADS = {
    "copy": Workload(10, 50, 128, 6, 100, 100, 10, every_step=True),
    "adding": Workload(2, 400, 128, 27, 100, 100, 1),
    "psmnist": Workload(1, 784, 128, 16, 256, 256, 10),
    "nscifar10": Workload(96, 1000, 256, 16, 256, 529, 10),
}
MODELS = ("wrnn", "irnn")


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds a training step, `ratio` is ours / released."""

    model: str
    task: str
    batch_size: int
    sequence_length: int
    released_ms: float
    ours_ms: float
    ratio: float
    released_per_second: float
    ours_per_second: float


class ReleasedLoop(nn.Module):
    """The per-step loop under autograd: outputs (B, T, O), or (B, O) of the last step."""

    def __init__(self, model: str, work: Workload) -> None:
        super().__init__()
        self.shape = (work.num_channels, work.ring_size) if model == "wrnn" else (work.hidden_size,)
        self.every_step = work.every_step
        size = torch.Size(self.shape).numel()
        self.input_map = nn.Linear(work.input_size, size)
        self.recurrence: nn.Conv1d | nn.Linear
        if model == "wrnn":
            self.recurrence = nn.Conv1d(work.num_channels, work.num_channels, 3, padding=1, padding_mode="circular")
        else:
            self.recurrence = nn.Linear(work.hidden_size, work.hidden_size)
        self.readout = nn.Linear(size, work.output_size)

    def forward(self, inputs_BTI: Tensor) -> Tensor:
        """Call the cell once per time step."""
        state = inputs_BTI.new_zeros(len(inputs_BTI), *self.shape)
        outputs = []
        for input_BI in inputs_BTI.unbind(1):
            drive = self.input_map(input_BI).view(state.shape)
            state = torch.relu(drive + self.recurrence(state))
            if self.every_step:
                outputs.append(self.readout(state.flatten(1)))
        return torch.stack(outputs, dim=1) if self.every_step else self.readout(state.flatten(1))

    def start_as_paper(self) -> None:
        """Shift or identity, no recurrent bias: signals that fade or grow would time denormal or infinite numbers."""
        assert self.recurrence.bias is not None
        nn.init.zeros_(self.recurrence.bias)
        if self.recurrence.weight.dim() == 2:
            nn.init.eye_(self.recurrence.weight)
        else:
            nn.init.zeros_(self.recurrence.weight)
            self.recurrence.weight.data[..., 2].fill_diagonal_(1)


class Ours(ReleasedLoop):
    """The same parameters and function through `wrnn.recurrence`."""

    def forward(self, inputs_BTI: Tensor) -> Tensor:
        """Run all steps in one call."""
        state = inputs_BTI.new_zeros(len(inputs_BTI), *self.shape)
        input_weight, input_bias = self.input_map.weight, self.input_map.bias
        weight, bias = self.recurrence.weight, self.recurrence.bias
        assert bias is not None
        if len(self.shape) == 2:
            input_weight, input_bias = input_weight.unflatten(0, self.shape), input_bias.unflatten(0, self.shape)
            bias = bias.unsqueeze(-1)
        recurrence: Callable[..., Tensor] = ring_recurrence if len(self.shape) == 2 else dense_recurrence
        states = recurrence(inputs_BTI, input_weight, input_bias + bias, weight, state, last_only=not self.every_step)
        return self.readout(states.flatten(2 if self.every_step else 1))


def measure(model: str, task: str, work: Workload, repeats: int) -> Row:
    """Time both variants `repeats` times in turn, after one untimed step each. Fixed seeds; no optimizer."""
    torch.manual_seed(0)
    released, ours = ReleasedLoop(model, work), Ours(model, work)
    released.start_as_paper()
    ours.load_state_dict(released.state_dict())
    inputs = torch.rand(work.batch_size, work.sequence_length, work.input_size)
    lead = (work.batch_size, work.sequence_length) if work.every_step else (work.batch_size,)
    targets = torch.rand(*lead, 1) if task == "adding" else torch.randint(work.output_size, lead)
    times: dict[nn.Module, list[float]] = {released: [], ours: []}
    for repeat in range(repeats + 1):
        for variant, seconds in times.items():
            start = time.perf_counter()
            outputs = variant(inputs)
            loss = (
                F.mse_loss(outputs, targets)
                if task == "adding"
                else F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
            )
            loss.backward()
            if repeat:
                seconds.append(time.perf_counter() - start)
            variant.zero_grad()
    a, b = (statistics.median(seconds) for seconds in times.values())
    size, length = work.batch_size, work.sequence_length
    return Row(model, task, size, length, 1e3 * a, 1e3 * b, b / a, size / a, size / b)


def environment() -> dict[str, str | int]:
    """Return what a time depends on and a reader must know."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu, "device": "cpu"}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse the command line, measure, print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description="Released per-step loop against wrnn.recurrence: one training step.")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--task", nargs="+", choices=list(WORKLOADS), default=["psmnist"])
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each variant (median is reported)")
    parser.add_argument("--threads", type=int, help="torch's thread count; default: torch's own choice")
    parser.add_argument("--batch-size", type=int, help="instead of the task's own")
    parser.add_argument("--sequence-length", type=int, help="instead of the task's own")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result as JSON")
    options = parser.parse_args(arguments)
    for name in ("repeats", "threads", "batch_size", "sequence_length"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)

    facts = environment()
    print(f"torch {facts['torch']}, {facts['threads']} threads, {facts['cpu']}; training step without optimizer,")
    print(f"median of {options.repeats}; sequences a second in brackets; ratio = ours / released")
    print(f"{'model':6} {'task':10} {'batch':>6} {'steps':>6} {'released ms':>20} {'ours ms':>20} {'ratio':>6}")
    rows = []
    for task in options.task:
        work = WORKLOADS[task]
        work = replace(
            work,
            batch_size=options.batch_size or work.batch_size,
            sequence_length=options.sequence_length or work.sequence_length,
        )
        for model in options.model:
            row = measure(model, task, work, options.repeats)
            rows.append(row)
            released, ours = (
                f"{ms:.0f} ({rate:.0f})"
                for ms, rate in ((row.released_ms, row.released_per_second), (row.ours_ms, row.ours_per_second))
            )
            print(
                f"{model:6} {task:10} {row.batch_size:6} {row.sequence_length:6} "
                f"{released:>20} {ours:>20} {row.ratio:6.2f}",
                flush=True,
            )
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, both variants: {peak_gib:.1f} GiB")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = facts | {"repeats": options.repeats, "peak_gib": peak_gib, "rows": [asdict(row) for row in rows]}
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return rows
