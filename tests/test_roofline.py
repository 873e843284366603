"""The GPU's kernels go through its compiler, whether a GPU is here or not."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT, needs_triton
from wrnn.roofline import _width

pytestmark = needs_triton


def compiles(program: str) -> None:
    """Run lines of Python in a process that does not interpret Triton."""
    imports = "from wrnn.recurrence import triton_kernels as kernels\nfrom wrnn.roofline import *\n"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    run = subprocess.run([sys.executable, "-c", imports + program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_loop_is_multiply_adds_and_hardly_spills() -> None:
    """At psMNIST's size on an H100; even so, it takes longer to load their operands than to issue them."""
    compiles("""
for kernel in ("advance", "go_back"):
    made = best(kernel, SIZES[0], "ieee")
    assert made.spilled_bytes <= 64 and made.multiply_adds > 0.7 * made.instructions, (kernel, made)
    assert 1 < made.l1_cycles / made.issue_cycles < 4, (kernel, made)
""")


@pytest.mark.parametrize("capability", [80, 90])
def test_all_forms_of_the_kernels_compile(capability: int) -> None:
    """For an A100 and an H100: both precisions, every drive, each nonlinearity, with and without the kernel's sum."""
    compiles(f"""
kinds = [("ieee", "relu", True), ("tf32", "tanh", False), ("ieee", "identity", False), ("tf32", "relu", True)]
for size, (precision, nonlinearity, sums) in zip(SIZES[1:], kinds):
    options = {{"NONLINEARITY": nonlinearity}}
    compiled("advance", size, kernels.advance.configs[0], precision, {capability}, **options)
    compiled("go_back", size, kernels.go_back.configs[0], precision, {capability}, **options, SUMS_KERNEL=sums)
""")


def test_the_width_of_a_load_is_in_its_name() -> None:
    names = {"E.128": 16, "64": 8, "E": 4, "": 4, "LU": 4, "16.M88.4": 16, "16.MT88.2": 8, "IDX": 4}
    assert {name: _width(name.split(".")) for name in names} == names
