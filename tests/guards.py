"""Memory between pages that must not be touched, and arrays of any layout in it."""

import ctypes
import mmap
import sys

import numpy as np

GUARD = 1 << 20
CANARY = 64
FILL = 0xA5


def strided(shape, itemsize, order, steps, backwards):
    """Strides of an array, where its first element lies in its memory, and how long that is.

    `order` names the axes from the innermost out, `steps` the distance along each in elements (0: the
    same element everywhere), `backwards` the axes that run down.
    """
    strides, unit, origin, span = [0] * len(shape), itemsize, 0, itemsize
    for axis in order:
        strides[axis] = unit * steps[axis]
        reach = (shape[axis] - 1) * strides[axis]
        span += reach
        if axis in backwards:
            origin += reach
            strides[axis] = -strides[axis]
        unit = max(unit, abs(strides[axis]) * shape[axis])
    return strides, origin, span


class Block:
    """Some bytes of a slot that end at the guard behind it, or begin at the one before it.

    Around them, and wherever no array is placed in them, are canaries.
    """

    def __init__(self, memory, low, high, start, length):
        self.memory, self.start, self.length = memory, start, length
        self.raw = memory[max(low, start - CANARY) : min(high, start + length + CANARY)]
        self.raw.fill(FILL)
        self.before = b""

    def array(self, shape, dtype, strides, offset):
        """An array whose first element is `offset` bytes into the block."""
        return np.ndarray(shape, dtype, self.memory, self.start + offset, strides)

    def remember(self):
        self.before = self.raw.tobytes()

    def restore(self):
        self.raw[:] = np.frombuffer(self.before, np.uint8)

    def unchanged(self, written=None):
        """Whether the bytes are those remembered, those of the array `written` excepted."""
        after = self.raw.tobytes()
        if after == self.before or written is None:
            return after == self.before
        expected = np.frombuffer(bytearray(self.before), np.uint8)
        offset = written.__array_interface__["data"][0] - self.raw.__array_interface__["data"][0]
        np.ndarray(written.shape, written.dtype, expected, offset, written.strides)[...] = written
        return after == expected.tobytes()


class Arena:
    """`slots` pieces of memory of `size` bytes, handed out in turn."""

    def __init__(self, slots, size):
        self.size, self.slots, self.next = size, slots, 0
        step = size + GUARD
        self.mapped = mmap.mmap(-1, GUARD + slots * step)
        self.memory = np.frombuffer(self.mapped, np.uint8)
        self.lows = [GUARD + i * step for i in range(slots)]
        if sys.platform != "win32":
            protect = ctypes.CDLL(None, use_errno=True).mprotect
            address = self.memory.__array_interface__["data"][0]
            for i in range(slots + 1):
                if protect(ctypes.c_void_p(address + i * step), ctypes.c_size_t(GUARD), 0) != 0:
                    raise OSError(ctypes.get_errno(), "mprotect failed")

    def block(self, length, at_end, shift=0):
        """`length` bytes, `shift` bytes from the guard."""
        low = self.lows[self.next]
        self.next = (self.next + 1) % self.slots
        high = low + self.size
        return Block(self.memory, low, high, high - length - shift if at_end else low + shift, length)
