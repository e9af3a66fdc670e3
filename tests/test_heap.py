"""Memory kept for the next step changes no number."""
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from animkit.heap import keep_freed_memory
torch.set_num_threads(1)
kept = sys.argv[1] == "kept" and keep_freed_memory()
assert kept == (sys.argv[1] == "kept"), "glibc took none of the settings"
x = torch.randn(1000, 3000, generator=torch.Generator().manual_seed(0))

def step():
    return float(torch.nn.functional.gelu(x * 2).sum())
y = [step() for _ in range(3)]
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
y += [step() for _ in range(10)]
print(repr(y), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, sep="|")
"""


def run(way: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    numbers, faults = done.stdout.strip().split("|")
    return numbers, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of Linux's glibc")
def test_the_same_numbers_with_far_fewer_page_faults():
    (plain, faults), (kept, fewer) = run("plain"), run("kept")
    assert plain == kept and fewer < faults / 5


def test_other_systems_are_left_alone(monkeypatch):
    from animkit.heap import keep_freed_memory
    monkeypatch.setattr(sys, "platform", "win32")
    assert keep_freed_memory() is False
