"""Time of a training step (forward and backward, no optimizer): the loop of the released code against ours.

The loop is restated from the description of the authors' code (Keller et al. 2024): per time step `nn.Linear` for the
input and circular `nn.Conv1d` (wRNN) or `nn.Linear` (iRNN) for the recurrence, ReLU, ordinary autograd. It records
nothing, so it is the released code at its fastest. Ours is core, readout and objective as a run builds them from the
config. Both have the same weights, batch and loss, and take turns within one process, so that a machine that slows
down slows both; figures are medians.
"""

import argparse
import json
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from wrnn import schema
from wrnn.cores.irnn import IdentityRNN
from wrnn.cores.wrnn import TravelingWaveRNN
from wrnn.runs import cpu_name, git_state
from wrnn.tasks.base import SequenceBatch, Task
from wrnn.tasks.synthetic import SyntheticTask
from wrnn.training import Parts, build

CONF = Path(__file__).parents[2] / "conf"


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


class ReleasedLoop(nn.Module):
    """The loop over time steps under autograd, with the weights of a core: (B, T, I) -> (B, T, O), or (B, O)."""

    def __init__(self, core: TravelingWaveRNN | IdentityRNN, last_only: bool) -> None:
        super().__init__()
        self.shape, self.last_only = core.ring_shape or (core.output_size,), last_only
        self.input_map = nn.Linear(core.input_size, core.output_size)
        self.input_map.load_state_dict(core.input_map.state_dict())
        if isinstance(core, TravelingWaveRNN):
            channels, taps = core.num_channels, core.kernel_size
            self.recurrence: nn.Module = nn.Conv1d(channels, channels, taps, padding=taps // 2, padding_mode="circular")
            self.recurrence.load_state_dict({"weight": core.kernel, "bias": core.bias})
        else:
            self.recurrence = nn.Linear(core.hidden_size, core.hidden_size)
            self.recurrence.load_state_dict({"weight": core.weight, "bias": core.bias})

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the cell once per time step."""
        state = inputs.new_zeros(len(inputs), *self.shape)
        states = []
        for inputs_BI in inputs.unbind(1):
            state = torch.relu(self.recurrence(state) + self.input_map(inputs_BI).view(state.shape))
            if not self.last_only:
                states.append(state.flatten(1))
        return state.flatten(1) if self.last_only else torch.stack(states, dim=1)


def batch_of(task: Task) -> SequenceBatch:
    """A training batch of the task; for image tasks random pixels and labels, so that no data are needed."""
    if isinstance(task, SyntheticTask):
        return task.make_batch("train", 0, 0)
    inputs = torch.rand(task.batch_size, task.sequence_length, task.input_size)
    return SequenceBatch(inputs, torch.randint(task.output_size, (task.batch_size,)))


def measure(model: str, task: str, parts: Parts, repeats: int) -> Row:
    """Time both variants `repeats` times in turn, after one untimed step each."""
    core = parts.core
    if not isinstance(core, TravelingWaveRNN | IdentityRNN):
        raise ValueError(f"model={model}: the released code has no such loop; use wrnn or irnn")
    batch = batch_of(parts.task)
    loop = ReleasedLoop(core, parts.objective.last_only)

    def released() -> Tensor:
        return parts.readout(loop(batch.inputs))

    def ours() -> Tensor:
        return parts.module(batch.inputs)

    seconds: dict[str, list[float]] = {"released": [], "ours": []}
    for repeat in range(repeats + 1):
        for name, variant in (("released", released), ("ours", ours)):
            start = time.perf_counter()
            parts.objective.loss(variant(), batch.targets).backward()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
            loop.zero_grad()
            parts.module.zero_grad()
    a, b = (1e3 * statistics.median(times) for times in seconds.values())
    batch_size, length, _ = batch.inputs.shape
    return Row(model, task, batch_size, length, a, b, b / a)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse the command line, measure, print the table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(description="The released loop against ours: one training step.")
    parser.add_argument("--model", nargs="+", default=["wrnn", "irnn"], help="options of the model group")
    parser.add_argument("--task", nargs="+", default=["psmnist"], help="options of the task group")
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
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "git": git_state(),
        "repeats": options.repeats,
    }
    print(f"torch {facts['torch']}, {facts['threads']} threads, {facts['cpu']}; one training step without optimizer,")
    print(f"median of {options.repeats}; sequences a second in brackets; ratio = ours / released")
    print(f"{'model':6} {'task':10} {'batch':>6} {'steps':>6} {'released ms':>18} {'ours ms':>18} {'ratio':>6}")
    schema.register()
    rows = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for task in options.task:
            for model in options.model:
                parts = build(compose("config", [f"model={model}", f"task={task}", *options.set]))
                row = measure(model, task, parts, options.repeats)
                rows.append(row)
                a, b = (f"{ms:.0f} ({1e3 * row.batch_size / ms:.0f})" for ms in (row.released_ms, row.ours_ms))
                size = f"{row.batch_size:6} {row.sequence_length:6}"
                print(f"{model:6} {task:10} {size} {a:>18} {b:>18} {row.ratio:6.2f}", flush=True)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, both variants: {peak_gib:.1f} GiB")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {**facts, "peak_gib": peak_gib, "rows": [asdict(row) for row in rows]}
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return rows
