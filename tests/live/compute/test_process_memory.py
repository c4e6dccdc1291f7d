"""A process of days bounds its memory at its start."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from gwtf_p2p.live.compute.process_memory import MOST_ARENAS, bound_arenas

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")

PROGRAM = """
import ctypes, re, sys, threading
from gwtf_p2p.live.compute.process_memory import bound_arenas, set_imports_aside
if sys.argv[1] == "bounded":
    assert bound_arenas({})
all_here = threading.Barrier(8)
def allocate():
    libc = ctypes.PyDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    held = libc.malloc(1000)
    all_here.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


def arenas(kind: str) -> int:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
    return ran.stdout.count("<heap nr=")


@GLIBC
def test_eight_threads_share_two_arenas() -> None:
    assert arenas("as it is") > MOST_ARENAS
    assert arenas("bounded") == MOST_ARENAS


FREED = """
import ctypes, sys
from gwtf_p2p.live.compute.process_memory import bound_arenas, give_back
from gwtf_p2p.live.compute.tensor_store import resident_bytes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def held(size):
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    return block
if sys.argv[1] != "as it is":
    assert bound_arenas({})
libc.free(held(30 << 20))  # from now on malloc would keep blocks of this size
size = (20 if sys.argv[1] != "small ones" else 1) << 20
blocks = [(held(size), held(1000)) for _ in range((20 << 20) // size)]
before = resident_bytes()
for block, _ in blocks:
    libc.free(block)
if sys.argv[1] == "small ones":
    give_back()
print(before - resident_bytes())
"""


@GLIBC
@pytest.mark.parametrize("kind", ["large ones", "small ones"])
def test_what_is_freed_between_other_things_goes_back(kind: str) -> None:
    def freed(kind: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FREED, kind], capture_output=True, text=True, check=True).stdout)

    assert freed("as it is") < 1 << 20
    assert freed(kind) > 19 << 20


def test_what_the_user_has_set_stays() -> None:
    assert not bound_arenas({"MALLOC_ARENA_MAX": "8"})
    assert not bound_arenas({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})


def test_imports_are_set_aside_from_collections_and_later_cycles_are_not() -> None:
    program = (
        "import gc, weakref, email.mime.text, http.server\n"
        "from gwtf_p2p.live.compute.process_memory import set_imports_aside\n"
        "before = len(gc.get_objects()); set_imports_aside()\n"
        "class Node: pass\n"
        "node = Node(); node.itself = node; there = weakref.ref(node); del node; gc.collect()\n"
        "print(before > 1000, len(gc.get_objects()) < 200, there() is None)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True", "True"]
