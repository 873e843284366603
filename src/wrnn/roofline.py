"""What the GPU kernels can reach, without a GPU: operations, bytes, and the instructions that the compiler made.

`python -m wrnn.roofline` compiles the kernels for an H100 with the compiler that Triton brings along, disassembles
them, and prints a table for the paper's tasks:

- operations of the recurrence in a training step (forward once, backward twice), and the time that they take at the
  chip's peak; the bytes that must pass its memory, and the time for these;
- instructions of a warp in one time step, how many of them are multiply-adds, what they load and store, registers and
  spilled bytes;
- two lower bounds on a kernel's time, as the steps of a sequence cannot overlap. A multiprocessor has four schedulers,
  each of which starts one instruction a cycle. And its L1 cache, of which shared memory is a part, moves 128 bytes a
  cycle. Not in them: bank conflicts, what the tensor cores read from shared memory themselves, and what a kernel waits
  for barriers and for its own state to come back from memory.
"""

import argparse
import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrnn.recurrence import triton_rings

MULTIPROCESSORS, SCHEDULERS, L1_BYTES, CLOCK = 132, 4, 128, 1.755e9
PEAK_FLOPS, PEAK_BYTES = 66.9e12, 3.35e12
"""H100 SXM: float32 outside the tensor cores, and memory, a second; as quoted by its maker."""

H100 = 90


@dataclass(frozen=True)
class Size:
    """A training step; `features` are those that enter the kernel, 0 with a finished drive."""

    name: str
    batch: int
    steps: int
    channels: int
    neurons: int
    features: int
    every_step: bool = False  # gradients reach every state
    shared: bool = False  # one drive for the batch


SIZES = (
    Size("psmnist", 128, 784, 16, 256, 1),
    Size("adding", 128, 1000, 27, 100, 2),
    Size("copy100", 128, 120, 6, 100, 0, True),
    Size("copy480", 128, 500, 6, 100, 0, True),
    Size("nscifar10", 128, 1000, 16, 256, 0, shared=True),
)
"""The paper's tasks as `wrnn.benchmark` times them."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel: numbers of one warp and one time step, and what it occupies."""

    warps: int
    instructions: int
    multiply_adds: int
    barriers: int
    l1_bytes: int
    registers: int
    spilled_bytes: int
    shared_bytes: int

    @property
    def issue_cycles(self) -> float:
        """In which the schedulers of a multiprocessor start the instructions of one step of one sequence."""
        return self.instructions * self.warps / SCHEDULERS

    @property
    def l1_cycles(self) -> float:
        """In which L1 cache and shared memory move what one step of one sequence loads and stores."""
        return self.l1_bytes * self.warps / L1_BYTES


def compiled(
    kernel: str, size: Size, config: Any, precision: str = "ieee", capability: int = H100, **options: Any
) -> Compiled:
    """Compile `advance` or `go_back` for a GPU that need not be here; `options` replace constants of the kernel.

    Not under TRITON_INTERPRET=1.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wrnn.recurrence import triton_kernels

    function = getattr(triton_kernels, kernel).fn
    padded = triton_rings.padded_size
    constants = {
        "GPU": "", "EXACT": padded(size.neurons) == size.neurons, "SHARED": size.shared,
        "SUMS_KERNEL": True, "FEATURES": size.features, "NONLINEARITY": "relu", "TAPS": 3,
        "N": padded(size.neurons), "C": padded(size.channels), "PRECISION": precision, **config.kwargs, **options,
    }  # fmt: skip
    if not size.features:
        constants |= {"x": None, "weight": None}
    else:
        constants["drive"] = None
    if not size.every_step:
        constants["grad_states"] = None
    whole = {"steps", "neurons", "batch", "turns", "x_batch", "x_step", "x_feature"}
    kinds = {
        name: "constexpr" if name in constants else "i32" if name in whole else "*fp32" for name in function.arg_names
    }
    used = {name: value for name, value in constants.items() if name in kinds}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds.values()) if kind == "*fp32"}
    made = triton.compile(
        ASTSource(function, kinds, used, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        knobs: Any = triton.knobs.nvidia
        usage = _output(knobs.cuobjdump.path, "-res-usage", cubin)
        loop = _longest_loop(_output(knobs.nvdisasm.path, "-c", cubin))
    words = [re.sub(r"^@\S+\s+", "", line).split(maxsplit=1)[0].split(".") for line in loop]
    names = Counter(name for name, *_ in words)
    l1_bytes = sum(32 * _width(kinds) for name, *kinds in words if name in _THROUGH_L1)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(
        warps=config.num_warps, instructions=len(loop), multiply_adds=names["FFMA"], barriers=names["BAR"],
        l1_bytes=l1_bytes, registers=int(found[1]), spilled_bytes=int(found[2]), shared_bytes=made.metadata.shared,
    )  # fmt: skip


_THROUGH_L1 = {"LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDL", "STL", "SHFL"}


def _width(kinds: list[str]) -> int:
    """Bytes a thread, by the words after an instruction's name; for matrices (LDSM, STSM) the last is their number."""
    if {"M88", "MT88"} & set(kinds):
        return 4 * int(kinds[-1])
    return next((int(word) // 8 for word in ("128", "64") if word in kinds), 4)


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def _longest_loop(assembly: str) -> list[str]:
    """The instructions from a label to a branch back to it, where these are most: the loop over time."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(found[1])
    loops = []
    for i, instruction in enumerate(code):
        branch = re.search(r"\bBRA\b.*(\.L\w+)", instruction)
        if branch and labels.get(branch[1], i) < i:
            loops.append(code[labels[branch[1]] : i + 1])
    return max(loops, key=len)


def best(kernel: str, size: Size, precision: str) -> Compiled:
    """Of the choices that the tuner would try, the one with the least time for instructions and L1 cache."""
    from wrnn.recurrence import triton_kernels

    tuner = getattr(triton_kernels, kernel)
    sizes = {"N": triton_rings.padded_size(size.neurons), "C": triton_rings.padded_size(size.channels)}
    configs = tuner.early_config_prune(tuner.configs, {}, **sizes)
    found = (compiled(kernel, size, config, precision) for config in configs)
    return min(found, key=lambda made: max(made.issue_cycles, made.l1_cycles))


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Operations, bytes and instructions of the GPU kernels on an H100.")
    parser.add_argument("--precision", choices=("ieee", "tf32x3", "tf32"), default="ieee", help="of the products")
    parser.add_argument("--task", nargs="+", choices=[size.name for size in SIZES], help="default: all")
    options = parser.parse_args(arguments)
    print("| task | GFLOP | GB | ms of FLOP | ms of bytes | ms to issue | ms through L1, forward | backward |")
    print("|---|---|---|---|---|---|---|---|")
    details = []
    for size in SIZES:
        if options.task and size.name not in options.task:
            continue
        flop = 6 * size.batch * size.steps * size.channels**2 * 3 * size.neurons
        slot_bytes = 4 * size.batch * size.neurons * triton_rings.padded_size(size.channels)
        passes = 2 + 4 * size.every_step  # states written, read; read by the readout twice; their gradients
        if not size.features:
            passes += 2 if size.shared else 4  # drives, written and read, and their gradients
        moved = passes * size.steps * slot_bytes
        turns = math.ceil(size.batch / MULTIPROCESSORS)
        ms_a_cycle = 1e3 * size.steps * turns / CLOCK
        issue, through = [], []
        for kernel in ("advance", "go_back"):
            made = best(kernel, size, options.precision)
            issue.append(ms_a_cycle * made.issue_cycles)
            through.append(ms_a_cycle * made.l1_cycles)
            details.append(
                f"| {size.name} | {kernel} | {made.warps} | {made.instructions} | "
                f"{made.multiply_adds / made.instructions:.0%} | {made.barriers} | "
                f"{made.l1_bytes * made.warps / 1024:.0f} | {made.registers} | {made.spilled_bytes} | "
                f"{made.shared_bytes / 1024:.0f} |"
            )
        print(
            f"| {size.name} | {flop / 1e9:.1f} | {moved / 1e9:.2f} | {1e3 * flop / PEAK_FLOPS:.2f} | "
            f"{1e3 * moved / PEAK_BYTES:.2f} | {sum(issue):.2f} | {through[0]:.2f} | {through[1]:.2f} |",
            flush=True,
        )
    print("\n| task | kernel | warps | instructions | FMA | barriers | L1 KiB | registers | spilled B | shared KiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(details))


if __name__ == "__main__":
    main()
