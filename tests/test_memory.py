"""Freed memory stays with the process."""

import resource
import subprocess
import sys

import pytest

from conftest import ROOT

FAULTS = """
import resource, sys
import torch
from wrnn.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 * 2**20)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(), int(keep_freed_memory()), faults(), faults())
"""


def test_what_was_freed_is_not_mapped_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    left_alone, can, _, kept = map(int, done.stdout.split())
    if not can:
        pytest.skip("not glibc")
    pages = 16 * 2**20 * 4 // resource.getpagesize()
    assert kept < pages / 10 and kept < left_alone / 10
