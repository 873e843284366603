"""What is done to runs, and what must come out: the same run to the last bit, or a refusal in one line.

Each kind of fault is a function of a `Torture` and a case number; the number alone draws what happens, so that a case
that fails can be repeated. It returns one of the `OUTCOMES` and a word on what was done.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from torture.processes import Hurt, Run, Server
from wrnn.paper import ledger as book
from wrnn.replay import TIMES, differences

OUTCOMES = ("same", "refused", "lost", "traceback")
TINY = (
    "src/train.py", "model=wrnn", "task=copy", "trainer=cpu", "task.datamodule.delay=3", "task.datamodule.batch_size=8",
    "task.datamodule.batches_per_epoch=6", "task.datamodule.num_val=16", "task.datamodule.num_test=16",
    "model.core.num_channels=2", "model.core.ring_size=7", "trainer.log_every_n_steps=1", "trainer.max_steps=90",
    "callbacks.resume_point.every_minutes=0.0005", "paths.run_dir=run", "paths.ledger_dir=ledger",
)  # fmt: skip

PICTURES = (
    "src/train.py", "model=wrnn", "task=nscifar10", "images=cifar10_folder", "trainer=cpu", "paths.data_dir=data",
    "task.datamodule.batch_size=2", "task.datamodule.num_val=2", "model.core.num_channels=1", "model.core.ring_size=7",
    "trainer.max_steps=2", "trainer.max_epochs=-1", "paths.run_dir=run", "paths.ledger_dir=ledger",
)  # fmt: skip


@dataclass
class Torture:
    """Where it happens.

    Attributes:
        folder: scratch; each case has one of its own in it.
        seed: of all draws.
        whole: folder of a run to which nothing happened, with its `seconds` and the number of its file `operations`.
    """

    folder: Path
    seed: int
    server: Server = field(init=False)
    whole: Path = field(init=False)
    seconds: float = field(init=False)
    operations: int = field(init=False)

    def __post_init__(self) -> None:
        """Run once to have everything loaded, and once more to see how it is."""
        self.server = Server(self.folder)
        for name in ("first", "whole"):
            folder, begun = self.folder / name, time.monotonic()
            folder.mkdir()
            run = self.start(folder, hurt=Hurt(0, "count", str(folder)))
            assert run.wait() == 0, run.output
            self.whole, self.seconds = folder, time.monotonic() - begun
        self.operations = self.whole.with_suffix(".count").stat().st_size

    def draw(self, kind: str, case: int) -> random.Random:
        return random.Random(f"{self.seed} {kind} {case}")

    def place(self, kind: str, case: int) -> Path:
        folder = self.folder / f"{kind}_{case}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def start(self, folder: Path, *words: str, hurt: Hurt | None = None, memory: int | None = None) -> Run:
        return Run(self.server, [*TINY, *words], folder, hurt, memory)

    @cached_property
    def pictures(self) -> Path:
        """A finished run on some pictures, which lie in its folder `data`."""
        folder, draw = self.place("pictures", 0), numpy.random.default_rng(self.seed)
        for name in (
            f"{split}/{kind}/{number}.png" for split in ("train", "test") for kind in "ab" for number in "012"
        ):
            path = folder / "data/cifar10" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype="uint8"))
            coarse.resize((32, 32)).save(path)
        run = self.look(folder)
        assert run.wait() == 0, run.output
        return folder

    def look(self, folder: Path) -> Run:
        """A run on the pictures in `folder/data`."""
        return Run(self.server, [*PICTURES], folder)


def verdict(run: Run, code: int, whole: Path) -> tuple[str, str]:
    """What became of a run that was to end as `whole` did."""
    said = run.output
    if "Traceback" in said:
        return "traceback", said[-1500:]
    if code == 0:
        off = difference(run.folder, whole)
        return ("lost", off) if off else ("same", "")
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return ("refused", lines[0]) if code in (2, 4) and len(lines) == 1 else ("lost", f"exit code {code}: {said[-300:]}")


def difference(folder: Path, whole: Path) -> str:
    """In what a finished run is not the other one; empty where it is."""
    if found := differences(folder / "run", whole / "run"):
        return "; ".join(found)
    kept, expected = (book.load(one / "ledger") for one in (folder, whole))
    if (
        kept.problems
        or len(kept.records) != 1
        or [_what(run) for run in kept.records] != [_what(run) for run in expected.records]
    ):
        return f"the ledger has {len(kept.records)} records, or others; {'; '.join(kept.problems)}"
    leftovers = [path.name for path in (folder / "run").rglob("*") if path.name.endswith(".tmp")]
    return f"left behind: {leftovers}" if leftovers else ""


def _what(run: book.Record) -> dict[str, Any]:
    """What a record says of a run, without where, when and how fast it was made."""
    found = asdict(run)
    for key in ("id", "date", "steps_per_second", "overrides", "hardware"):
        del found[key]
    found["results"] = {key: value for key, value in found["results"].items() if key not in TIMES}
    return found


def ended_by(run: Run, code: int) -> str:
    """What is wrong with how a run was stopped; empty where nothing is."""
    if "Traceback" in run.output:
        return "traceback"
    return "" if code in (-9, -15, -2, 143, 130, 0) else f"exit code {code}"


def kill(torture: Torture, case: int) -> tuple[str, str]:
    """A signal at a random moment, then the same command again, to its end."""
    draw, whole, folder = torture.draw("kill", case), torture.whole, torture.place("kill", case)
    done = []
    for _ in range(3):
        run = torture.start(folder, "ckpt_path=last")
        seconds = draw.uniform(0, 1.2 * torture.seconds)
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        while run.process.exitcode is None and not run.log.exists():  # until then it is Python that starts, not us
            time.sleep(0.001)
        run.process.join(seconds)
        if run.process.exitcode is None and run.process.pid:
            os.kill(run.process.pid, number)
            done.append(f"{number.name} after {seconds:.2f} s")
        code = run.wait()
        if wrong := ended_by(run, code):
            return ("traceback" if wrong == "traceback" else "lost"), f"{done}: {wrong} {run.output[-500:]}"
        if code == 0:
            break
    last = torture.start(folder, "ckpt_path=last")
    found, why = verdict(last, last.wait(), whole)
    return found, f"{', '.join(done)}: {why}"


def operation(torture: Torture, case: int) -> tuple[str, str]:
    """SIGKILL just before a file operation, then the same command again."""
    draw, whole, folder = torture.draw("operation", case), torture.whole, torture.place("operation", case)
    number = draw.randint(1, torture.operations)
    first = torture.start(folder, hurt=Hurt(number, "kill", str(folder)))
    first.wait()
    last = torture.start(folder, "ckpt_path=last")
    found, why = verdict(last, last.wait(), whole)
    return found, f"operation {number} of {torture.operations}: {why}"


def checkpoint(torture: Torture, case: int) -> tuple[str, str]:
    """A checkpoint that is cut off, or has one wrong byte."""
    draw, whole, folder = torture.draw("checkpoint", case), torture.whole, torture.place("checkpoint", case)
    first = torture.start(
        folder, hurt=Hurt(draw.randint(torture.operations // 3, torture.operations), "kill", str(folder))
    )
    first.wait()
    path = folder / "run/checkpoints" / draw.choice(["last.ckpt", "last.ckpt", "best.ckpt"])
    if not path.exists():
        path = folder / "run/checkpoints/last.ckpt"
    what, content = damaged(path.read_bytes(), draw)
    path.write_bytes(content)
    last = torture.start(folder, "ckpt_path=last")
    found, why = verdict(last, last.wait(), whole)
    return found, f"{path.name} {what}: {why}"


def data(torture: Torture, case: int) -> tuple[str, str]:
    """A picture of the data that is cut off, or has one wrong bit."""
    draw, folder = torture.draw("data", case), torture.place("data", case)
    shutil.copytree(torture.pictures / "data", folder / "data")
    path = draw.choice(sorted(folder.rglob("*.png")))
    what, content = damaged(path.read_bytes(), draw)
    path.write_bytes(content)
    run = torture.look(folder)
    found, why = verdict(run, run.wait(), torture.pictures)
    if found == "refused" and str(path.relative_to(folder)) not in why:
        found = "lost"
    return found, f"{path.relative_to(folder)} {what}: {why}"


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """What was done to a file, and what it holds then: cut off somewhere, or with one wrong bit."""
    place = draw.randrange(len(content))
    if draw.random() < 0.7:
        return f"cut off at {place} of {len(content)}", content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << draw.randrange(8)
    return f"flipped at {place} of {len(content)}", bytes(changed)


def again(torture: Torture, first: Run, what: str, codes: tuple[int, ...]) -> tuple[str, str]:
    """What becomes of a run that was denied something, must have left with one of `codes`, and is started again."""
    code = first.wait()
    if "Traceback" in first.output:
        return "traceback", f"{what}: {first.output[-1500:]}"
    if code not in codes:
        return "lost", f"{what}: exit code {code}: {first.output[-300:]}"
    last = torture.start(first.folder, "ckpt_path=last")
    found, why = verdict(last, last.wait(), torture.whole)
    return found, f"{what}: exit code {code}, then {why}"


def full(torture: Torture, case: int) -> tuple[str, str]:
    """A file operation that fails as on a full disk, then room again."""
    draw, folder = torture.draw("full", case), torture.place("full", case)
    number = draw.randint(1, torture.operations)
    first = torture.start(folder, hurt=Hurt(number, "full", str(folder)))
    return again(torture, first, f"operation {number} of {torture.operations}", (0, 2))


def denied(torture: Torture, case: int) -> tuple[str, str]:
    """A folder that may not be written to from some file operation on, then may again."""
    draw, folder = torture.draw("denied", case), torture.place("denied", case)
    number = draw.randint(1, torture.operations)
    first = torture.start(folder, hurt=Hurt(number, "denied", str(folder)))
    return again(torture, first, f"from operation {number} of {torture.operations}", (0, 2))


def clock(torture: Torture, case: int) -> tuple[str, str]:
    """A time of day that jumps, by up to ten years, in each of two runs, the first of which is killed."""
    draw, folder = torture.draw("clock", case), torture.place("clock", case)
    done = []
    for kills in (True, False):
        seconds = round(draw.choice([-1, 1]) * 10 ** draw.uniform(0, 8.5))
        number = draw.randint(1, torture.operations if kills else torture.operations // 3)
        run = torture.start(folder, "ckpt_path=last", hurt=Hurt(number, "clock", str(folder), seconds))
        done.append(f"{seconds:+} s at operation {number}")
        if kills:
            while run.process.exitcode is None and not run.log.exists():
                time.sleep(0.001)
            run.process.join(draw.uniform(0.3, 1) * torture.seconds)
            if run.process.exitcode is None and run.process.pid:
                os.kill(run.process.pid, signal.SIGKILL)
        code = run.wait()
    found, why = verdict(run, code, torture.whole)
    return found, f"{', '.join(done)}: {why}"


def pair(torture: Torture, case: int) -> tuple[str, str]:
    """Two runs in one folder at once, one of which may be killed, then a third."""
    draw, folder = torture.draw("pair", case), torture.place("pair", case)
    runs = []
    for wait in (0.0, draw.uniform(0, torture.seconds)):
        time.sleep(wait)
        runs.append(torture.start(folder, "ckpt_path=last"))
    killed = draw.choice([None, *runs])
    if killed is not None and killed.process.pid:
        killed.process.join(draw.uniform(0, torture.seconds))
        if killed.process.exitcode is None:
            os.kill(killed.process.pid, signal.SIGKILL)
    for run in runs:
        code = run.wait()
        if "Traceback" in run.output:
            return "traceback", run.output[-1500:]
        if not (code == 0 or (code == 2 and "another process is training in it" in run.output) or run is killed):
            return "lost", f"exit code {code}: {run.output[-300:]}"
    last = torture.start(folder, "ckpt_path=last")
    return verdict(last, last.wait(), torture.whole)


def disk(torture: Torture, case: int) -> tuple[str, str]:
    """A disk that is too small, then a larger one."""
    draw, folder = torture.draw("disk", case), torture.place("disk", case)
    size = draw.randint(4, 400) * 1024
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        first = torture.start(folder)
        first.wait()
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        return again(torture, first, f"{size:,} bytes", (0, 2))
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def memory(torture: Torture, case: int) -> tuple[str, str]:
    """Little memory, then enough."""
    draw, folder = torture.draw("memory", case), torture.place("memory", case)
    room = draw.randint(0, 60) * 2**20
    first = torture.start(folder, memory=room)
    return again(torture, first, f"{room >> 20} MiB", (0, 2, 4))


KINDS: dict[str, Callable[[Torture, int], tuple[str, str]]] = {
    "kill": kill, "operation": operation, "checkpoint": checkpoint, "full": full, "denied": denied, "disk": disk,
    "memory": memory, "clock": clock, "pair": pair, "data": data,
}  # fmt: skip
