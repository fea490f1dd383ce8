"""Memory that a rank fills with its tensors and another process writes to disk.

It has no name in a file system, so nothing remains of it when the processes are killed, and the size of /dev/shm does not
limit it.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from paddle_llm.checkpoint.format.index import DTYPES, dtype_name, local_shape
from paddle_llm.checkpoint.format.writer import LocalTensor
from paddle_llm.models.weights.shards import Shard

_ALIGNMENT = 64  # of each tensor, in bytes


class SharedBuffer:
    """Memory of one or more processes.

    Attributes:
        handle: File descriptor, which another process may inherit.

    Args:
        handle: File descriptor of existing memory; None for new, empty memory.
    """

    def __init__(self, handle: int | None = None) -> None:
        if handle is None:
            handle = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, handle)  # otherwise the memory would remain until the process ends
        self.handle = handle
        self._memory: mmap.mmap | None = None

    def fill(self, tensors: Mapping[str, LocalTensor]) -> dict[str, Any]:
        """Copy tensors to the memory, which grows if it is too small.

        Args:
            tensors: Tensors by key.

        Returns:
            JSON from which `tensors` of another process finds them.

        Raises:
            OSError: If the system has not enough memory.
            ValueError: If `read` of a tensor returns another shape or type than its part has.
        """
        content: dict[str, Any] = {}
        size = 0
        for key, one in tensors.items():
            shard = one.shard
            described = {"dtype": one.dtype, "shape": shard.shape, "axis": shard.axis, "ranges": shard.ranges}
            content[key] = {**described, "unpadded": one.unpadded, "offset": size}
            nbytes = int(np.prod(local_shape(shard), dtype=np.int64)) * DTYPES[one.dtype].nbytes
            size += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._map(size)
        for key, one in tensors.items():
            values, target = one.read(), self._array(content[key]["offset"], one.dtype, local_shape(one.shard))
            if dtype_name(values) != one.dtype or values.shape != target.shape:
                raise ValueError(f"{key} is {dtype_name(values)} {values.shape}, not {one.dtype} {target.shape}")
            np.copyto(target, values)
        return {"bytes": size, "tensors": content}

    def tensors(self, content: dict[str, Any]) -> dict[str, LocalTensor]:
        """Return the tensors that another process has copied to the memory.

        Args:
            content: JSON of `fill`.
        """
        self._map(content["bytes"])
        found = {}
        for key, one in content["tensors"].items():
            shard = Shard(tuple(one["shape"]), one["axis"], tuple((start, stop) for start, stop in one["ranges"]))
            read = partial(self._array, one["offset"], one["dtype"], local_shape(shard))
            found[key] = LocalTensor(shard, one["dtype"], read, one["unpadded"])
        return found

    def _map(self, size: int) -> None:
        if self._memory is not None and len(self._memory) >= size:
            return
        size = max(size, mmap.PAGESIZE)
        if os.fstat(self.handle).st_size < size:
            os.posix_fallocate(self.handle, 0, size)  # an error now, not a SIGBUS later
        self._memory = mmap.mmap(self.handle, size)

    def _array(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        assert self._memory is not None
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._memory, DTYPES[dtype].numpy, count, offset).reshape(shape)
