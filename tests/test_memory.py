"""Memory that is freed stays with the process that asked for it, where the C library can be told."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from kinfolk import memory

# Touches and frees tensors again and again; page faults say what was fetched anew.
AGAIN_AND_AGAIN = """
import resource, sys, threading
import torch
from kinfolk.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
size, faults = int(sys.argv[3]) << 18, [0, 0]

def work():
    for turn in range(2):  # the first makes the memory this process's
        for _ in range(20):
            [torch.ones(size) for _ in range(3)]
        faults[turn] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[2] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(kept, faults[1] - faults[0])
"""


def run(how, thread, mebibytes):
    command = [sys.executable, "-c", AGAIN_AND_AGAIN, how, thread, str(mebibytes)]
    kept, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize(("thread", "mebibytes"), [("main", 64), ("other", 40)])
def test_freed_memory_is_used_again(thread, mebibytes):
    _, by_default = run("default", thread, mebibytes)
    kept, faults = run("keep", thread, mebibytes)
    assert kept == "True"
    assert faults < by_default / 10


@pytest.mark.parametrize("missing", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, missing):
    def refuse(name):
        raise missing(name)

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(("largest", "kept", "asked"), [(2**30, True, 2), (2**25, True, 3), (0, False, 2)])
def test_an_older_glibc_gets_what_it_takes_or_nothing(monkeypatch, largest, kept, asked):
    calls = []

    def mallopt(what, value):
        calls.append((what, value))
        return int(value <= largest)

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert memory.keep_freed_memory() is kept
    assert len(calls) == asked
