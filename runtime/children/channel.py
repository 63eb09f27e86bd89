"""What a process and its child send each other: short JSON texts, and arrays through memory that both see.

Nothing is pickled: whatever has become of the child, its parent reads numbers and texts only.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import select
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    from numpy.typing import NDArray

MOST_TEXT = 1 << 20  # bytes of a message
SLOTS = 2  # arrays that may be on their way at once
TYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
PAGE = 1 << 16  # bytes: the shared memory grows by multiples of it


class Channel:
    """One end. Each slot holds one array at a time, and never becomes smaller."""

    def __init__(self, connection: Connection, memories: tuple[int, ...]) -> None:
        """`memories`: descriptors of the shared memory, one for each slot."""
        self._connection, self._memories = connection, memories
        self._maps: list[mmap.mmap | None] = [None] * len(memories)
        self._poll = select.poll()  # the connection's own makes another one at every call
        self._poll.register(connection.fileno(), select.POLLIN)

    def send(self, **message: object) -> None:
        """Send a message: values that JSON has. Raises OSError when the other end is gone."""
        self._connection.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """Wait for a message. Raises EOFError or OSError when the other end is gone, ValueError for no message."""
        message = json.loads(self._connection.recv_bytes(MOST_TEXT))
        if not isinstance(message, dict):
            raise ValueError("expected a message")
        return message

    def waits(self, seconds: float = 0) -> bool:
        """Whether a message, or the end, comes within so many seconds."""
        return bool(self._poll.poll(math.ceil(seconds * 1000)))

    def put(self, array: NDArray[Any], slot: int = 0) -> dict[str, object]:
        """Copy an array into a slot; the message that `view` reads. Raises OSError where there is no memory for it."""
        import numpy as np

        held = self._maps[slot]
        if held is None or len(held) < array.nbytes:
            size = max(1, -(-array.nbytes // PAGE)) * PAGE
            if os.fstat(self._memories[slot]).st_size < size:
                os.ftruncate(self._memories[slot], size)
            held = self._maps[slot] = mmap.mmap(self._memories[slot], 0)
        if array.size:
            np.copyto(np.frombuffer(held, array.dtype, array.size).reshape(array.shape), array)
        return {"slot": slot, "shape": array.shape, "type": array.dtype.name}

    def view(self, where: dict[str, Any]) -> NDArray[Any]:
        """What `put` has copied, as long as the other end does not use the slot again.

        Raises ValueError when the message does not describe what is there.
        """
        import numpy as np

        slot, shape, name = where.get("slot"), where.get("shape"), where.get("type")
        if slot not in range(len(self._memories)) or name not in TYPES or not isinstance(shape, list):
            raise ValueError("expected an array in shared memory")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("expected an array with a shape")
        assert isinstance(slot, int)
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, name)
        held = self._maps[slot]
        if held is None or len(held) < count * np.dtype(name).itemsize:
            if os.fstat(self._memories[slot]).st_size < count * np.dtype(name).itemsize:
                raise ValueError("expected an array that fits the shared memory")
            held = self._maps[slot] = mmap.mmap(self._memories[slot], 0)
        return np.frombuffer(held, name, count).reshape(shape)

    def take(self, where: dict[str, Any]) -> NDArray[np.uint8]:
        """A copy of a frame, uint8 [H, W, 3]. Raises ValueError when it is something else."""
        seen = self.view(where)
        if seen.dtype.name != "uint8" or seen.ndim != 3 or seen.shape[2] != 3:
            raise ValueError("expected a frame")
        return seen.copy()

    @staticmethod
    def allow(memory: int) -> None:
        """In a child: limit what this process may allocate, to so many bytes; another call may raise it again."""
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (memory if hard < 0 else min(memory, hard), hard))

    def held(self) -> int:
        """Bytes of shared memory."""
        return sum(os.fstat(number).st_size for number in self._memories)

    def close(self) -> None:
        """Close this end, and its descriptors."""
        self._connection.close()
        self._maps = [None] * len(self._memories)
        for number in self._memories:
            os.close(number)
        self._memories = ()
