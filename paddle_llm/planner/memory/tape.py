"""A tape that records which bytes a network holds while it computes, without computing.

A layer is written as the sequence of its operations, like the network itself: each allocates its output and names what it
keeps for the backward pass. Memory is counted when a `Block` is created and when Python drops the last reference to it, so
that lifetimes are those of the real code. The backward pass is Paddle's (3.3.1, fluid/eager/backward.cc): nodes wait for all
their gradients, run in the order in which they become ready, weights first, and drop what they kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


class Meter:
    """Counts bytes.

    Attributes:
        now: Bytes that are held.
        peak: Largest number of bytes since the last `reset`.
    """

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0

    def reset(self) -> None:
        """Measure the peak from now on."""
        self.peak = self.now


class Block:
    """Memory that is held while a reference to it exists."""

    __slots__ = ("_meter", "size")

    def __init__(self, meter: Meter, size: int) -> None:
        self._meter, self.size = meter, size
        meter.now += size
        meter.peak = max(meter.peak, meter.now)

    def __del__(self) -> None:
        self._meter.now -= self.size


# Called with the gradient of the output; returns the gradients of the inputs, None for those without one.
Backward = Callable[[Block], "list[Block | None]"]


class _Node:
    __slots__ = ("backward", "inputs", "pending", "received")

    def __init__(self, backward: Backward, inputs: Sequence[Value]) -> None:
        self.backward: Backward | None = backward
        self.inputs = [value.node for value in inputs]
        self.pending = 0
        self.received: Block | None = None


class Value:
    """A tensor: its memory and the operation that computed it.

    Attributes:
        block: Memory.
        node: Operation that gets its gradient; None if it needs none.
    """

    __slots__ = ("block", "node")

    def __init__(self, block: Block, node: _Node | None = None) -> None:
        self.block, self.node = block, node

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.block.size


class Weight(Value):
    """A weight, which is not counted here. Its gradient is counted and kept if it is trained.

    Attributes:
        bytes: Bytes of its gradient.
    """

    __slots__ = ("bytes",)

    def __init__(self, tape: Tape, size: int, trained: bool) -> None:
        super().__init__(Block(tape.nothing, 0), _Node(tape.keep_gradient, ()) if trained else None)
        self.bytes = size


class Leaf(Value):
    """An input of the network or of a part of it, which receives a gradient."""

    __slots__ = ("_gradient",)

    def __init__(self, block: Block) -> None:
        super().__init__(block, _Node(self._receive, ()))
        self._gradient: Block | None = None

    def _receive(self, gradient: Block) -> list[Block | None]:
        self._gradient = gradient
        return []

    def take(self) -> Block | None:
        """Return the gradient, and drop it here."""
        gradient, self._gradient = self._gradient, None
        return gradient


@dataclass(frozen=True)
class Buckets:
    """How gradients are collected and reduced to their owners (`parallel/zero/buckets.py`).

    Attributes:
        capacity: Bytes of gradients that wait.
        owners: Number of owners, to each of which a separate bucket is sent.
        in_flight: Buckets that are reduced at the same time.
    """

    capacity: int
    owners: int
    in_flight: int


class Tape:
    """Runs operations on a meter.

    A gradient of a weight is added to a sum that is counted elsewhere, and dropped; or it waits in a bucket.

    Args:
        keeps_gradients: Whether gradients of weights stay in memory.
        buckets: How gradients are collected; None if they are not.

    Attributes:
        meter: Counts activations and gradients.
        nothing: Counts what is not part of the result.
        grads_enabled: Whether operations keep what their backward pass needs.
    """

    def __init__(self, *, keeps_gradients: bool = False, buckets: Buckets | None = None) -> None:
        self.meter = Meter()
        self.nothing = Meter()
        self.grads_enabled = True
        self._keeps_gradients, self._buckets = keeps_gradients, buckets
        self._gradients: list[Block] = []
        self._sent: deque[Block] = deque()

    def keep_gradient(self, gradient: Block) -> list[Block | None]:
        """Take the gradient of a weight."""
        if self._keeps_gradients:
            self._gradients.append(gradient)
        elif self._buckets is not None:
            waiting = sum(block.size for block in self._gradients)
            while self._gradients and waiting + gradient.size > self._buckets.capacity:
                waiting -= self._send(waiting // self._buckets.owners)
            self._gradients.append(gradient)
        return []

    def _send(self, size: int) -> int:
        """Copy at least `size` bytes of waiting gradients to a bucket, drop them, and return their bytes."""
        assert self._buckets is not None
        count = total = 0
        while count < len(self._gradients) and (total < size or not count):
            total += self._gradients[count].size
            count += 1
        self._sent.append(self.new(total) if count > 1 else self._gradients[0])
        del self._gradients[:count]
        while len(self._sent) > self._buckets.in_flight:
            self._sent.popleft()
        return total

    def send_all(self) -> None:
        """Send the gradients that wait at the end of a backward pass, owner by owner."""
        waiting = sum(block.size for block in self._gradients)
        while self._buckets is not None and self._gradients:
            self._send(-(-waiting // self._buckets.owners))
        self._sent.clear()

    def new(self, size: int) -> Block:
        """Allocate memory."""
        return Block(self.meter, size)

    def apply(
        self,
        inputs: Sequence[Value],
        output: Block,
        keeps: Iterable[Block | Value] = (),
        backward: Callable[[Block, tuple[Block, ...]], list[Block | None]] | None = None,
    ) -> Value:
        """Record an operation.

        Args:
            inputs: Inputs that may need a gradient.
            output: Memory of the output.
            keeps: Memory that the backward pass reads.
            backward: Function from the output's gradient and `keeps` to the gradients of `inputs`; by default it allocates
                one of the size of each input.
        """
        if not self.grads_enabled or all(value.node is None for value in inputs):
            return Value(output)
        kept = tuple(one.block if isinstance(one, Value) else one for one in keeps)
        needs = [value.node is not None for value in inputs]
        sizes = [value.bytes if isinstance(value, Weight) else value.size for value in inputs]

        def allocate(gradient: Block) -> list[Block | None]:
            if backward is not None:
                found = backward(gradient, kept)
                return [block if needed else None for block, needed in zip(found, needs, strict=True)]
            return [self.new(size) if needed else None for size, needed in zip(sizes, needs, strict=True)]

        return Value(output, _Node(allocate, inputs))

    def backward(self, output: Value, gradient: Block) -> None:
        """Run the backward pass from an output. Gradients of weights are kept.

        Args:
            output: Value to begin with.
            gradient: Its gradient.
        """
        if output.node is None:
            return
        _count_pending(output.node)
        output.node.received = gradient
        del gradient
        queue = deque([output.node])
        output.node = None
        while queue:
            self._run(queue.popleft(), queue)

    def _run(self, node: _Node, queue: deque[_Node]) -> None:
        received, backward = node.received, node.backward
        assert received is not None and backward is not None
        node.received = None
        found = backward(received)
        del received, backward
        node.backward = None  # drops what the operation kept
        inputs, node.inputs = node.inputs, []
        for index, following in enumerate(inputs):
            if following is None:
                continue
            block, found[index] = found[index], None
            if block is not None and following.received is None:
                following.received = block
            # Otherwise the two are added in place.
            block = None
            following.pending -= 1
            if following.pending == 0:
                if following.inputs:
                    queue.append(following)
                else:
                    queue.appendleft(following)


def _count_pending(start: _Node) -> None:
    """Count for each node how many gradients it waits for."""
    seen, waiting = {id(start)}, [start]
    while waiting:
        node = waiting.pop()
        for following in node.inputs:
            if following is None:
                continue
            following.pending += 1
            if id(following) not in seen:
                seen.add(id(following))
                waiting.append(following)
