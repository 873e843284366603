"""Wrong values for every key of every option of every config group, on the command line and in YAML.

A run that starts must have what was asked for; any other value must be refused in one line that names the key.
"""

import math
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from torture.faults import Torture
from torture.processes import Run
from wrnn import schema

CONF = schema.CONF
SMALL = (
    "trainer=cpu", "trainer.max_steps=1", "trainer.max_epochs=-1", "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1", "paths.run_dir=run", "paths.ledger_dir=ledger",
)  # fmt: skip
WRNN = ("model=wrnn", "model.core.num_channels=2", "model.core.ring_size=7")
COPY = (
    "task=copy", "task.datamodule.delay=3", "task.datamodule.batch_size=8", "task.datamodule.num_val=16",
    "task.datamodule.num_test=16",
)  # fmt: skip
MUTATIONS: dict[str, Any] = {
    "word": "banana", "negative": -3, "zero": 0, "huge": 1e30, "nan": math.nan, "fraction": 2.5, "true": True,
    "null": None, "list": [1, 2], "mapping": {"a": 1}, "dangling": "${nowhere.at_all}", "misspelt": ..., "deleted": ...,
}  # fmt: skip
MADE_UP = {"psmnist": "fake_mnist", "smnist": "fake_mnist", "nscifar10": "fake_cifar10"}

Case = tuple[str, tuple[str, ...], str, str]
"""An option, the words of a small run with it, a key of it, and a mutation."""


def options() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Each option of each group with the words of a small run, and where its keys are."""
    for path in sorted(CONF.glob("*/*.yaml")):
        group, option = path.parent.name, path.stem
        choice = f"{group}={option}"
        if group == "model":
            yield choice, (choice, *COPY), group
        elif group == "task":
            made_up = (f"images={MADE_UP[option]}", "task.datamodule.num_val=8") if option in MADE_UP else ()
            yield choice, (*WRNN, choice, *made_up), group
        elif group == "images":
            task = "nscifar10" if "cifar" in option else "psmnist"
            yield choice, (*WRNN, f"task={task}", choice, "task.datamodule.num_val=8"), group
        elif choice == "trainer=gpu" and not torch.cuda.is_available():
            continue
        elif group in ("optimizer", "scheduler", "init", "input_init", "trainer", "callbacks", "logger", "paths"):
            yield choice, (*WRNN, *COPY, choice), group
    yield "config", (*WRNN, *COPY), ""


def _leaves(node: DictConfig, path: str) -> Iterator[str]:
    for key in map(str, node):
        child = node._get_node(key)
        below = f"{path}.{key}" if path else key
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation() and len(child):
            if path or not (CONF / key).is_dir():
                yield from _leaves(child, below)
        else:
            yield below


@cache
def cases() -> list[Case]:
    """Every mutation of every key of every option."""
    found = []
    for option, words, group in options():
        cfg = schema.compose_config(*words, *(word for word in SMALL if not word.startswith(f"{group}=")))
        for key in _leaves(cfg[group], group) if group else _leaves(cfg, ""):
            found += [(option, words, key, mutation) for mutation in MUTATIONS]
    return found


def misspelt(option: str, key: str, draw: random.Random) -> str:
    """The key without a letter of its last part, or with two of them exchanged; no other key of this option."""
    above, _, last = key.rpartition(".")
    legal = {other for owner, _, other, _ in cases() if owner == option}
    while True:
        place = draw.randrange(len(last))
        wrong = last[:place] + last[place + 1 :]
        if draw.random() < 0.5 and place + 1 < len(last):
            wrong = last[:place] + last[place + 1] + last[place] + last[place + 2 :]
        name = f"{above}.{wrong}" if above else wrong
        if wrong and name not in legal:
            return name


def in_hydra(value: Any) -> str:
    """A value in the grammar of the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_hydra(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(in_hydra, value))}]"
    if isinstance(value, str):
        return f"'{value}'"
    return "null" if value is None else str(value).lower()


def wrong(torture: Torture, number: int) -> tuple[str, str]:
    """A value of a wrong kind or out of range, a misspelt or missing key, on the command line or in YAML."""
    draw, folder = torture.draw("input", number), torture.place("input", number)
    option, words, key, mutation = cases()[_order(torture.seed)[number % len(cases())]]
    name = misspelt(option, key, draw) if mutation == "misspelt" else key
    value = 1 if mutation == "misspelt" else MUTATIONS[mutation]
    if mutation == "deleted":
        more = [f"~{key}"]
    elif draw.random() < 0.5:
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        (folder / "experiment").mkdir()
        (folder / "experiment/wrong.yaml").write_text("# @package _global_\n" + yaml.safe_dump(nested))
        more = [f"hydra.searchpath=[file://{folder}]", "experiment=wrong"]
    else:
        more = [f"{name}={in_hydra(value)}"]
    group = option.split("=")[0]
    usual = [word for word in (*words, *SMALL) if word.split("=")[0] not in (key, group) or word == option]
    run = Run(torture.server, ["src/train.py", *usual, *more], folder)
    code = run.wait(120)
    what = f"{option}: {key}, {mutation}: {' '.join(more)}"
    return _judge(run, code, name, value, mutation, what)


def _judge(run: Run, code: int, key: str, value: Any, mutation: str, what: str) -> tuple[str, str]:
    said = run.output
    if "Traceback" in said:
        return "traceback", f"{what}\n{said[-1500:]}"
    if code == 0:
        if mutation == "misspelt":
            return "lost", f"{what}: accepted"
        cfg = OmegaConf.load(next(Path(run.folder).rglob("config.yaml")))
        has = OmegaConf.select(cfg, key, default=...)
        asked = ... if mutation == "deleted" else value
        has = OmegaConf.to_container(has) if OmegaConf.is_config(has) else has
        same = (has == asked and isinstance(has, bool) == isinstance(asked, bool)) or (
            isinstance(has, str) and has.lower() == in_hydra(asked)
        )
        return ("same", "") if same else ("lost", f"{what}: ran with {has!r}")
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if code not in (2, 3, 4) or len(lines) != 1:
        return "lost", f"{what}: exit code {code}: {said[-300:]}"
    parts = [part for part in re.split(r"[._]", key.split(".")[-1]) if len(part) > 1] or [key]
    named = code == 3 or any(part.lower().rstrip("s") in lines[0].lower() for part in parts)
    return ("refused" if named else "lost"), f"{what}\n    {lines[0][:300]}"


def covered() -> str:
    """How many keys there are, and what is done to them."""
    keys = {(option, key) for option, _, key, _ in cases()}
    return f"{len(keys)} keys of {len({option for option, _ in keys})} options x {len(MUTATIONS)} mutations"


@cache
def _order(seed: int) -> list[int]:
    """The cases in an order in which each key comes once before any comes again."""
    draw = random.Random(seed)
    keys: dict[tuple[str, str], list[int]] = {}
    for index, (option, _, key, _) in enumerate(cases()):
        keys.setdefault((option, key), []).append(index)
    for indices in keys.values():
        draw.shuffle(indices)
    rounds = []
    for place in range(len(MUTATIONS)):
        turn = [indices[place] for indices in keys.values()]
        draw.shuffle(turn)
        rounds += turn
    return rounds
