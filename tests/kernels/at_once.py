"""Runs the blocks of a launch at once in Triton's interpreter, a thread each, so that they may wait for each other."""

import threading
import time

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter

# Blocks that wait look again and again, and leave the others their turn.
TURN_S, MOST_S = 1e-4, 60


class AtOnce:
    """Stands for a kernel whose grid has one dimension."""

    def __init__(self, kernel):
        self.kernel, self.own, self.failed = kernel, threading.local(), []

    def number(self, axis):
        """The block that this thread is."""
        return interpreter.TensorHandle(np.array([self.own.number if axis == 0 else 0], dtype=np.int32), tl.int32)

    def block(self, number, arguments, options):
        """Run one block."""
        self.own.number = number
        try:
            self.kernel[(1,)](*arguments, **options)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            self.failed.append(error)

    def resting(self, load):
        """A load that leaves other blocks a turn where it is one of what they write."""

        def rested(*arguments):
            if arguments[-1] is True:  # volatile
                time.sleep(TURN_S)
            return load(*arguments)

        return rested

    def run(self, blocks, arguments, options):
        """Run all blocks, the last first."""
        threads = [
            threading.Thread(target=self.block, args=(number, arguments, options), daemon=True)
            for number in reversed(range(blocks))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(MOST_S)
        assert not self.failed, self.failed
        assert not any(thread.is_alive() for thread in threads), "blocks wait for each other for ever"

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            # what the interpreter patches must stay so until the last block has ended
            scope, builder = interpreter._patch_lang(self.kernel.fn), interpreter.interpreter_builder
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(interpreter, "_patch_lang", lambda _: interpreter._LangPatchScope())
                patch.setattr(builder, "create_get_program_id", self.number)
                for name in ("create_load", "create_masked_load"):
                    patch.setattr(builder, name, self.resting(getattr(builder, name)))
                self.run(grid[0], arguments, options)
            scope.restore()

        return launch
