"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

from conftest import ROOT

FAULTS = """
import resource, sys
import torch
from wrnn.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 * 2**20)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(), int(keep_freed_memory()), min(faults() for _ in range(8)))  # the heap grows at first
"""


def test_what_was_freed_is_not_mapped_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    left_alone, can, kept = map(int, done.stdout.split())
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    assert can
    assert kept < left_alone / 10 and kept < 16_384 / 10
