"""Kernels of one chain overlap: the next is launched while the last blocks of the one before still run.

Every block of a kernel that is launched so waits, before it reads or writes what another launch writes or reads, until
all that came before is finished and visible. What is saved is the launch itself, a few microseconds of each stage.

It stays so where a kernel lets the next one begin before its own wait (mode 2). The wait of C is for the end of B, the
kernel before it; B ends when all its blocks do, and each of them waited for the end of A. So no kernel passes its wait
before all that came before has ended, however many have begun: nothing is read before it is written, and nothing
overwritten that is still read, in memory that an allocator gave to two of them either. A kernel begins once all blocks
of those before it have their room: what waits keeps nobody from ending, and blocks that wait for each other all come to
run.

A kernel that is launched otherwise, as torch and cuBLAS do, begins after the end of all before it, and is waited for as
any other. Before its wait a kernel may touch what gives it no value: fetch lines into L2, the one place where all SMs
read and write.

And it may read what is settled: what neither the last launch in another mode than 2 has written nor any since, as such
a launch passes its wait before this one begins. Callers tell (`Age`), who know what their layers write, and when: a
kernel cannot.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import interpreted

HOPPER = (9, 0)


@triton.jit
def start_after_others(OVERLAP: tl.constexpr):
    """Wait for the kernels before: ahead of all that reads or writes values.

    Args:
        OVERLAP: Whether the kernel is launched with `launch_pdl`: 0 not; 1 yes; 2 yes, and the next one may be launched
            as soon as the last blocks of this one have started; 3 yes, and as soon as they `end_soon`.
    """
    let_next_begin(OVERLAP)
    wait_for_others(OVERLAP)


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """Say that the next kernel may be launched as soon as all blocks of this one have come here, before their wait.

    Args:
        OVERLAP: As `start_after_others` takes it.
    """
    if OVERLAP == 2:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_others(OVERLAP: tl.constexpr):
    """Wait for the kernels before, where what is settled was read: ahead of all else that reads or writes values.

    Args:
        OVERLAP: As `start_after_others` takes it.
    """
    if OVERLAP > 0:
        tl.extra.cuda.gdc_wait()


@triton.jit
def end_soon(OVERLAP: tl.constexpr):
    """Say that a block has read all that it reads: only sums are left, and the next kernel may be launched meanwhile.

    Args:
        OVERLAP: As `start_after_others` takes it.
    """
    if OVERLAP == 3:
        tl.extra.cuda.gdc_launch_dependents()


def overlap(device: torch.device, mode: int = 1) -> dict[str, int]:
    """Give the launch options of a kernel that waits for others: at its start, or behind what it reads that is settled.

    Args:
        device: Where it runs; a CPU outside the interpreter only compiles, for Hopper.
        mode: As `start_after_others` takes it.

    Returns:
        The constant of the kernel and the option of the launch.
    """
    able = not interpreted() and (device.type != "cuda" or torch.cuda.get_device_capability(device) >= HOPPER)
    return {"OVERLAP": mode, "launch_pdl": True} if able and mode else {"OVERLAP": 0}
