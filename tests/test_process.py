"""Memory that is freed stays with the process that asked for it, where the C library can be told."""

import platform
import subprocess
import sys

import pytest

from kinfolk import process

# Touches and frees 64 MiB, more than glibc keeps by itself, again and again; page faults say what was fetched anew.
AGAIN_AND_AGAIN = """
import resource, sys
import torch
from kinfolk.process import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = [0, 0]
for turn in range(2):  # the first makes the memory this process's
    for _ in range(20):
        torch.ones(1 << 24)
    faults[turn] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(kept, faults[1] - faults[0])
"""


def run(how):
    ran = subprocess.run([sys.executable, "-c", AGAIN_AND_AGAIN, how], capture_output=True, text=True, check=True)
    kept, faults = ran.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    _, by_default = run("default")
    kept, faults = run("keep")
    assert kept == "True"
    assert faults < by_default / 10


@pytest.mark.parametrize("missing", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, missing):
    def refuse(name):
        raise missing(name)

    monkeypatch.setattr(process.ctypes, "CDLL", refuse)
    assert process.keep_freed_memory() is False
