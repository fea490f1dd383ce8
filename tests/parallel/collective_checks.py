"""Each collective against its definition in numpy; runs inside ranks (see test_collectives.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

REAL = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool"]
COMPLEX = ["complex64", "complex128"]
SHAPES: list[list[int]] = [[], [1], [7], [3, 5], [4, 0]]
REDUCTIONS = ["SUM", "MAX", "MIN", "PROD", "AVG"]
OUTCOMES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "SUM": lambda stacked: stacked.sum(0),
    "MAX": lambda stacked: stacked.max(0),
    "MIN": lambda stacked: stacked.min(0),
    "PROD": lambda stacked: stacked.prod(0),
    "AVG": lambda stacked: stacked.mean(0),
}


def is_defined(op: str, dtype: str) -> bool:
    if dtype in COMPLEX:
        return op in ("SUM", "AVG")
    return op != "AVG" or "float" in dtype


def values(member: int, shape: list[int], dtype: str, salt: int = 0) -> np.ndarray:
    """Return small integers that every type and every sum of four represents exactly."""
    count = int(np.prod(shape))
    numbers = ((np.arange(count) * 7 + member * 5 + salt) % 3).reshape(shape)
    if dtype == "bool":
        return (numbers % 2).astype(bool)
    return numbers + 1j * (numbers - 1) if dtype in COMPLEX else numbers.astype("float64")


def tensor_of(array: np.ndarray, dtype: str) -> Any:
    import paddle

    return paddle.to_tensor(array).astype(dtype).reshape(list(array.shape))


def array_of(tensor: Any) -> np.ndarray:
    if "complex" in str(tensor.dtype) or tensor.dtype.name == "BOOL":
        return tensor.numpy()
    return tensor.astype("float64").numpy()


class Checker:
    """Runs each collective in one group and collects what differs from its definition."""

    def __init__(self, group: Any):
        import paddle

        self.paddle, self.dist, self.group = paddle, paddle.distributed, group
        self.rank, self.size = group.rank, group.nranks
        self.problems: list[str] = []

    def same(self, label: str, got: Any, expected: np.ndarray) -> None:
        got = array_of(got)
        if list(got.shape) != list(expected.shape) or not np.array_equal(got, expected):
            self.problems.append(f"{label}: {got.tolist()} instead of {expected.tolist()}")

    def all(self, shape: list[int], dtype: str, salt: int = 0) -> list[np.ndarray]:
        return [values(member, shape, dtype, salt) for member in range(self.size)]

    def empty(self, shape: list[int], dtype: str) -> Any:
        return self.paddle.zeros(shape, dtype="float32").astype(dtype)

    def moves(self) -> Iterator[tuple[list[int], str, str]]:
        for dtype in REAL + COMPLEX:
            for shape in SHAPES:
                yield shape, dtype, f"{dtype} {shape} in {self.group.ranks}"

    def reductions(self) -> Iterator[tuple[list[int], str, str, Any, str]]:
        for shape, dtype, label in self.moves():
            for name in REDUCTIONS:
                yield shape, dtype, name, getattr(self.dist.ReduceOp, name), f"{name} {label}"

    def total(self, arrays: list[np.ndarray], name: str) -> np.ndarray:
        outcome = OUTCOMES[name](np.stack(arrays)) if arrays[0].size else arrays[0]
        return outcome.astype(bool) if arrays[0].dtype == bool else outcome

    def refused(self, label: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except TypeError:
            return
        self.problems.append(f"{label}: has no definition but was not refused")

    # ---- the collectives

    def all_reduce(self) -> None:
        for shape, dtype, name, op, label in self.reductions():
            arrays = self.all(shape, dtype)
            tensor = tensor_of(arrays[self.rank], dtype)
            if not is_defined(name, dtype):
                self.refused(label, lambda t=tensor, o=op: self.dist.all_reduce(t, op=o, group=self.group))
                continue
            self.dist.all_reduce(tensor, op=op, group=self.group)
            self.same_average(label, tensor, self.total(arrays, name), name, dtype)

    def same_average(self, label: str, got: Any, expected: np.ndarray, name: str, dtype: str) -> None:
        """Averages of integers are rounded to the type, as the result of the definition is."""
        if name == "AVG" and expected.size:
            got_array, tolerance = array_of(got), 1e-2 if dtype in ("bfloat16", "float16") else 1e-6
            if not np.allclose(got_array, expected, atol=tolerance, rtol=0):
                self.problems.append(f"{label}: {got_array.tolist()} instead of {expected.tolist()}")
        else:
            self.same(label, got, expected)

    def reduce(self) -> None:
        destination = self.group.ranks[-1]
        for shape, dtype, name, op, label in self.reductions():
            if not is_defined(name, dtype):
                continue
            arrays = self.all(shape, dtype)
            tensor = tensor_of(arrays[self.rank], dtype)
            self.dist.reduce(tensor, destination, op=op, group=self.group)
            mine = self.rank == self.size - 1
            self.same_average(label, tensor, self.total(arrays, name) if mine else arrays[self.rank], name, dtype)

    def broadcast(self) -> None:
        for shape, dtype, label in self.moves():
            arrays = self.all(shape, dtype)
            tensor = tensor_of(arrays[self.rank], dtype)
            self.dist.broadcast(tensor, self.group.ranks[1], group=self.group)
            self.same(label, tensor, arrays[1])

    def all_gather(self) -> None:
        for shape, dtype, label in self.moves():
            arrays = self.all(shape, dtype)
            mine, into_empty = tensor_of(arrays[self.rank], dtype), []
            self.dist.all_gather(into_empty, mine, group=self.group)
            for got, expected in zip(into_empty, arrays, strict=True):
                self.same(label, got, expected)
            if not shape:
                continue
            whole = self.empty([shape[0] * self.size, *shape[1:]], dtype)
            self.dist.stream.all_gather(whole, mine, group=self.group, use_calc_stream=True)
            self.same(f"into a tensor, {label}", whole, np.concatenate(arrays))
            older = self.empty(whole.shape, dtype)
            self.group.process_group.all_gather(mine, older).wait()
            self.same(f"older form, {label}", older, np.concatenate(arrays))

    def gather(self) -> None:
        for shape, dtype, label in self.moves():
            arrays = self.all(shape, dtype)
            into = [self.empty(shape, dtype) for _ in arrays] if self.rank == 0 else None
            self.dist.gather(tensor_of(arrays[self.rank], dtype), into, dst=self.group.ranks[0], group=self.group)
            for got, expected in zip(into or [], arrays, strict=False):
                self.same(label, got, expected)

    def scatter(self) -> None:
        for shape, dtype, label in self.moves():
            arrays, out = self.all(shape, dtype), self.empty(shape, dtype)
            pieces = [tensor_of(a, dtype) for a in arrays] if self.rank == 0 else None
            self.dist.scatter(out, pieces, src=self.group.ranks[0], group=self.group)
            self.same(label, out, arrays[self.rank])
            if shape:
                whole = tensor_of(np.concatenate(arrays), dtype)
                self.dist.stream.scatter(out, whole, src=self.group.ranks[0], group=self.group)
                self.same(f"of a tensor, {label}", out, arrays[self.rank])

    def reduce_scatter(self) -> None:
        for shape, dtype, name, op, label in self.reductions():
            if not is_defined(name, dtype) or not shape:
                continue
            # What member m has for member k.
            table = [[values(m * 5 + k, shape, dtype) for k in range(self.size)] for m in range(self.size)]
            expected = self.total([row[self.rank] for row in table], name)
            out = self.empty(shape, dtype)
            self.dist.reduce_scatter(out, [tensor_of(a, dtype) for a in table[self.rank]], op, self.group)
            self.same_average(label, out, expected, name, dtype)
            whole = tensor_of(np.concatenate(table[self.rank]), dtype)
            self.dist.stream.reduce_scatter(out, whole, op=op, group=self.group, use_calc_stream=True)
            self.same_average(f"of a tensor, {label}", out, expected, name, dtype)

    def all_to_all(self) -> None:
        for shape, dtype, label in self.moves():
            table = [[values(m * 5 + k, shape, dtype) for k in range(self.size)] for m in range(self.size)]
            outs: list[Any] = []
            self.dist.alltoall(outs, [tensor_of(a, dtype) for a in table[self.rank]], group=self.group)
            for member, got in enumerate(outs):
                self.same(label, got, table[member][self.rank])
            if shape:
                whole = tensor_of(np.concatenate(table[self.rank]), dtype)
                out = self.empty(whole.shape, dtype)
                self.dist.stream.alltoall(out, whole, group=self.group)
                self.same(f"of a tensor, {label}", out, np.concatenate([row[self.rank] for row in table]))

    def all_to_all_uneven(self) -> None:
        for dtype in REAL + COMPLEX:
            # Member m sends (m + k) % 3 rows to member k: some send none.
            rows = [[(m + k) % 3 for k in range(self.size)] for m in range(self.size)]
            table = [[values(m * 5 + k, [rows[m][k], 3], dtype) for k in range(self.size)] for m in range(self.size)]
            incoming = [rows[m][self.rank] for m in range(self.size)]
            out = self.empty([sum(incoming), 3], dtype)
            mine = tensor_of(np.concatenate(table[self.rank]), dtype)
            self.dist.alltoall_single(out, mine, rows[self.rank], incoming, group=self.group)
            self.same(dtype, out, np.concatenate([row[self.rank] for row in table]))

    def send_recv(self) -> None:
        following, previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for shape, dtype, label in self.moves():
            arrays, out = self.all(shape, dtype), self.empty(shape, dtype)
            mine = tensor_of(arrays[self.rank], dtype)
            # Everybody sends first: would hang if isend waited for its peer.
            task = self.dist.isend(mine, self.group.ranks[following], group=self.group)
            self.dist.recv(out, self.group.ranks[previous], group=self.group)
            task.wait()
            self.same(label, out, arrays[previous])

    def batches(self) -> None:
        """Send two tensors to both neighbours at the same time, larger than the buffers of the system."""
        following, previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for dtype, shape in [("float32", [3, 5]), ("int16", [7]), ("float32", [700_001])]:
            p2p, expected, outs = [], [], []
            for salt, (to, origin) in enumerate([(following, previous), (previous, following)] * 2):
                mine = tensor_of(values(self.rank, shape, dtype, salt), dtype)
                outs.append(self.empty(shape, dtype))
                expected.append(values(origin, shape, dtype, salt))
                p2p.append(self.dist.P2POp(self.dist.isend, mine, self.group.ranks[to], self.group))
                p2p.append(self.dist.P2POp(self.dist.irecv, outs[-1], self.group.ranks[origin], self.group))
            for task in self.dist.batch_isend_irecv(p2p):
                task.wait()
            for got, wanted in zip(outs, expected, strict=True):
                self.same(f"batch of {dtype} {shape}", got, wanted)

    def partial(self) -> None:
        """Send a tensor in parts between two groups of tensor-parallel ranks, and assemble it."""
        pg, whole = self.group.process_group, values(0, [self.size, 6], "float32")
        for dtype in REAL:
            expected = values(0, [self.size, 6], dtype)
            tensor, out = tensor_of(expected, dtype), self.empty(whole.shape, dtype)
            following, previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
            pg._start_coalescing()
            pg.send_partial_on_calc_stream(tensor, following, self.size, following)
            pg.recv_partial_on_calc_stream(out, previous, self.size, self.rank)
            pg._end_coalescing()
            part = np.zeros_like(expected)
            part[self.rank] = expected[self.rank]
            self.same(f"part {dtype}", out, part)
            pg.all_gather_partial_on_calc_stream(out, out, self.size, self.rank)
            self.same(f"whole {dtype}", out, expected)

    def objects(self) -> None:
        gathered: list[Any] = []
        self.dist.all_gather_object(gathered, {"rank": self.rank, "text": "x" * self.rank}, group=self.group)
        if gathered != [{"rank": m, "text": "x" * m} for m in range(self.size)]:
            self.problems.append(f"all_gather_object: {gathered}")
        box = [f"from {self.rank}"]
        self.dist.broadcast_object_list(box, src=self.group.ranks[0], group=self.group)
        if box != ["from 0"]:
            self.problems.append(f"broadcast_object_list: {box}")

    def views(self) -> None:
        """Read and write a tensor that is not contiguous in its own memory."""
        base = self.paddle.zeros([3, 4])
        view = base.transpose([1, 0])
        view.set_value(tensor_of(values(self.rank, [4, 3], "float32"), "float32"))
        self.dist.all_reduce(view, group=self.group)
        self.same("transposed", view, self.total(self.all([4, 3], "float32"), "SUM"))


CHECKS = [name for name in vars(Checker) if name in {
    "all_reduce", "reduce", "broadcast", "all_gather", "gather", "scatter", "reduce_scatter", "all_to_all",
    "all_to_all_uneven", "send_recv", "batches", "partial", "objects", "views",
}]  # fmt: skip


def check_all(group_lists: list[list[list[int]]]) -> dict[str, list[str]]:
    """Run every check; each entry of `group_lists` is a set of disjoint groups that work at the same time."""
    import paddle

    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    install_gloo_backend()
    paddle.distributed.init_parallel_env()
    me = paddle.distributed.get_rank()
    problems: dict[str, list[str]] = {name: [] for name in CHECKS}
    for groups in group_lists:
        made = [paddle.distributed.new_group(ranks) for ranks in groups]
        for group in made:
            if me in group.ranks:
                checker = Checker(group)
                for name in CHECKS:
                    checker.problems = []
                    getattr(checker, name)()
                    problems[name] += checker.problems
        paddle.distributed.barrier()
    return problems


def make_many_groups(count: int) -> list[float]:
    """Two disjoint groups at a time, each used once; returns what the last member of each sum gave."""
    import paddle

    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    install_gloo_backend()
    paddle.distributed.init_parallel_env()
    me = paddle.distributed.get_rank()
    sums = []
    for _ in range(count // 2):
        groups = [paddle.distributed.new_group([0, 1]), paddle.distributed.new_group([2, 3])]
        tensor = paddle.to_tensor([float(me)])
        paddle.distributed.all_reduce(tensor, group=groups[me // 2])
        sums.append(tensor.item())
    return sums
