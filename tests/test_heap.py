"""Memory kept for the next step changes no number; the peak is of this process alone."""
import subprocess
import sys

import pytest

from animkit import heap

SCRIPT = """
import sys, torch
from animkit.heap import keep_freed_memory
torch.set_num_threads(1)
kept = sys.argv[1] == "kept" and keep_freed_memory()
assert kept == (sys.argv[1] == "kept"), "the C library took none of the settings"
x = torch.randn(1000, 3000, generator=torch.Generator().manual_seed(0)).requires_grad_()
torch.nn.functional.gelu(x * 2).pow(2).sum().backward()
print(repr([float(x.grad.sum()), float(x.grad.std())]))
"""


def run(way: str) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of Linux's glibc")
def test_it_changes_no_number():
    """What it gains is measured by benchmarks/heap.py."""
    assert run("plain") == run("kept")


def test_other_systems_are_left_alone(monkeypatch):
    from animkit.heap import keep_freed_memory
    monkeypatch.setattr(sys, "platform", "win32")
    assert keep_freed_memory() is False


def test_where_the_system_does_not_tell_its_peak_there_is_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: "VmRSS:\t 7 kB\n")
    assert heap.peak_memory() is None


def test_the_peak_is_not_that_of_the_program_that_started_this_one():
    """ru_maxrss would be: the child's is no less than what its parent held."""
    child = "from animkit.heap import peak_memory; print(peak_memory())"
    parent = f"""if True:
        import subprocess, sys
        held = b"x" * 2**30
        print(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True, check=True).stdout)"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert 2**22 < int(done.stdout) < 2**29
