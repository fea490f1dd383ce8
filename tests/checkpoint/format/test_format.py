"""Tensors and state return bit for bit from a checkpoint, whole or in any part, and only the needed bytes are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as save_bytes

from paddle_llm.checkpoint.format import reader as reader_module
from paddle_llm.checkpoint.format.digested_file import BLOCK_BYTES
from paddle_llm.checkpoint.format.index import Index, TensorEntry, merge, whole
from paddle_llm.checkpoint.format.manifest import Manifest, read_json, read_manifest
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.state import STATE, decode, encode
from paddle_llm.checkpoint.format.verify import verify
from paddle_llm.checkpoint.format.writer import LocalTensor, finish, write_rank_file
from paddle_llm.models.weights.shards import Shard, assemble
from tests.checkpoint.format import small

WHOLE_RUN = Manifest(step=1, layout={}, global_batch=1)


def write(folder, parts_of_ranks):
    folder.mkdir()
    return finish(folder, [write_rank_file(folder, *one) for one in enumerate(parts_of_ranks)], WHOLE_RUN)


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("digests", [False, True])
def test_every_tensor_returns_bit_for_bit_on_any_layout(folder, digests):
    full = small.tensors()
    assert verify(folder, "full").step == 10
    with Reader(folder, digests=digests) as reader:
        assert set(full) < set(reader.keys())
        for key in reader.in_file_order(full):
            assert same(reader.tensor(key), full[key]), key
            for degree in (1, 2, 4):
                shards = [small.shard_of(key, full[key], degree, rank) for rank in range(degree)]
                parts = [reader.shard(key, shard) for shard in shards]
                if full[key].ndim:
                    assert all(same(part, shard.take(full[key])) for part, shard in zip(parts, shards, strict=True))
                    assert same(assemble(shards, parts), full[key])
        reader.finish()


def test_state_returns_exactly(folder):
    with Reader(folder) as reader:
        record = reader.manifest.files[STATE]
        found = decode(read_json(folder, STATE, record), reader.tensor)
    expected = small.STATE_OF_RANK_0
    assert np.isnan(found.pop("loss")) and found["step"] == 10
    assert type(found["random"]) is tuple and same(found["random"][1], expected["random"][1])
    assert found["scheduler"] == expected["scheduler"] and type(found["scheduler"]["base"]) is np.float32


@pytest.mark.parametrize(
    "state",
    [
        {"a": {"b": np.zeros(2)}, "a/b": np.ones(2)},
        {1: "int", "$array": 2, (1, "x"): [None, True, -0.0, float("-inf"), 2**80, "\ud800 \x00 ü"]},
        [np.float16(0.1), np.int64(-5), np.bool_(True), np.array([1, 2], np.uint16), np.array(1.5)],
    ],
)
def test_any_state_returns_exactly(state):
    value, arrays = encode(state, "state")
    assert repr(decode(json.loads(json.dumps(value)), arrays.__getitem__)) == repr(state)


def test_state_that_cannot_be_stored_is_refused():
    with pytest.raises(TypeError, match="state/one/2 is a set, which a checkpoint cannot store"):
        encode({"one": [1, 2, {3}]}, "state")
    with pytest.raises(TypeError, match="an array of object cannot be stored"):
        encode([np.array([object()])], "state")
    with pytest.raises(ValueError, match=r"\$code is unknown"):
        decode({"$code": "import os"}, {}.__getitem__)


def test_files_are_those_of_the_safetensors_library(tmp_path):
    """Byte for byte: header, order of tensors and padding."""
    arrays = {
        "weights/b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "weights/ü": np.arange(3, dtype=np.float16),
        "state/flag": np.array([True]),
        "state/a": np.arange(2, dtype=np.int64),
        "state/empty": np.zeros((0, 4), np.float32),
        "state/scalar": np.array(2.5),
    }
    write(tmp_path / "one", [{key: LocalTensor.of(values) for key, values in arrays.items()}])
    file = tmp_path / "one" / "rank-00000.safetensors"
    assert file.read_bytes() == save_bytes(arrays, metadata={"format": "np"})
    assert all(same(values, arrays[key]) for key, values in load_file(file).items())
    verify(tmp_path / "one")
    with Reader(tmp_path / "one") as reader:
        assert all(same(reader.tensor(key), values) for key, values in arrays.items())


def _boxes(shape):
    ranges = [st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda pair: tuple(sorted(pair))) for n in shape]
    return st.tuples(*ranges)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_box_of_any_split_equals_numpy(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple))
    axis = data.draw(st.integers(0, len(shape) - 1))
    full = np.arange(np.prod(shape), dtype=data.draw(st.sampled_from(["float64", "int32", "uint16", "int8"])))
    full = full.reshape(shape)
    cuts = sorted({0, shape[axis], *data.draw(st.lists(st.integers(0, shape[axis]), max_size=4))})
    ranges = data.draw(st.permutations(list(zip(cuts, cuts[1:], strict=False))))
    ranks = data.draw(st.integers(1, len(ranges)))
    parts = []
    for rank in range(ranks):
        shard = Shard(shape, axis, tuple(ranges[rank::ranks]))
        parts.append({"weights/x": LocalTensor.of(shard.take(full), shard)})
    folder = tmp_path_factory.mktemp("box") / "checkpoint-1"
    write(folder, parts)
    box = data.draw(_boxes(shape))
    with Reader(folder, digests=data.draw(st.booleans())) as reader:
        assert same(reader.box("weights/x", box), np.ascontiguousarray(full[tuple(slice(*one) for one in box)]))
        assert same(reader.tensor("weights/x"), full)
        other = data.draw(st.integers(0, len(shape) - 1))
        wanted = tuple(one for one in data.draw(st.permutations([(0, 1), (1, shape[other])])) if one[0] < one[1])
        shard = Shard(shape, other, wanted)
        assert same(reader.shard("weights/x", shard), np.ascontiguousarray(shard.take(full)))
        reader.finish()


@pytest.fixture
def bytes_read(monkeypatch):
    """Sizes of all reads of tensor files."""
    sizes, preadv = [], os.preadv

    def recorded(handle, buffers, offset):
        count = preadv(handle, buffers, offset)
        sizes.append(count)
        return count

    monkeypatch.setattr(os, "preadv", recorded)
    return sizes


def test_only_the_needed_bytes_are_read(tmp_path, bytes_read):
    full = np.arange(512 * 8192, dtype=np.float32).reshape(512, 8192)
    write(tmp_path / "one", [{"weights/x": LocalTensor.of(full)}])
    with Reader(tmp_path / "one") as reader:
        for shard in (Shard(full.shape, 0, ((128, 256),)), Shard(full.shape, 1, ((2048, 4096), (6144, 8192)))):
            bytes_read.clear()
            part = reader.shard("weights/x", shard)
            assert same(part, np.ascontiguousarray(shard.take(full)))
            assert sum(bytes_read) == part.nbytes


def test_rows_that_are_close_together_are_read_in_blocks(tmp_path, bytes_read):
    """A separate read of every 16 bytes would take thousands of times longer."""
    full = np.arange(100_000 * 8, dtype=np.float32).reshape(-1, 8)
    write(tmp_path / "one", [{"weights/x": LocalTensor.of(full)}])
    with Reader(tmp_path / "one") as reader:
        assert same(reader.box("weights/x", [(0, len(full)), (2, 6)]), np.ascontiguousarray(full[:, 2:6]))
    assert sum(bytes_read) == full.nbytes and len(bytes_read) < 5


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_memory_above_the_result_is_bounded(tmp_path, digests, axis):
    full = np.ones((4096, 4096), np.float32)  # 64 MB
    shard = Shard(full.shape, 1 - axis, ((0, 2048),))
    other = Shard(full.shape, 1 - axis, ((2048, 4096),))
    write(tmp_path / "one", [{"weights/x": LocalTensor.of(one.take(full), one)} for one in (shard, other)])
    wanted = Shard(full.shape, axis, ((1024, 3072),))
    with Reader(tmp_path / "one", digests=digests) as reader:
        out = np.empty_like(wanted.take(full))
        tracemalloc.start()
        try:
            reader.shard("weights/x", wanted, out)
            reader.finish()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (out == 1).all() and peak < 5 * BLOCK_BYTES


def test_padding_of_the_vocabulary_may_change(folder):
    full = small.tensors()["moment1/embed"]
    with Reader(folder) as reader:
        for length, unpadded in ((11, None), (12, 11), (16, 11)):
            shards = [Shard((length, 6), 0, ((0, length // 2),)), Shard((length, 6), 0, ((length // 2, length),))]
            found = assemble(shards, [reader.shard("moment1/embed", one, unpadded=unpadded) for one in shards])
            assert same(found[:11], full[:11]) and not found[11:].any()
        with pytest.raises(ValueError, match=r"moment1/embed has the shape \[10, 6\], but \[12, 6\] in the checkpoint"):
            reader.shard("moment1/embed", whole((10, 6)))
        with pytest.raises(ValueError, match="weights/norm has the shape"):
            reader.shard("weights/norm", whole((8,)))


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "_OPEN_FILES", 2)
    full = np.arange(12, dtype=np.float32)
    shards = [Shard((12,), 0, ((2 * i, 2 * i + 2),)) for i in range(6)]
    write(tmp_path / "one", [{"weights/x": LocalTensor.of(one.take(full), one)} for one in shards])
    before = len(os.listdir("/proc/self/fd"))
    with Reader(tmp_path / "one", digests=True) as reader:
        assert same(reader.tensor("weights/x"), full)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        reader.finish()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tensor_is_requested_when_it_is_written(tmp_path):
    """A tensor of a GPU is copied to host memory only then; values that do not fit their part are an error."""
    order = []

    def read(key):
        order.append((key, (tmp_path / "one" / "rank-00000.safetensors").stat().st_size))
        return np.ones(4, np.float32)

    def local(key):
        return LocalTensor(whole((4,)), "float32", lambda: read(key))

    write(tmp_path / "one", [{key: local(key) for key in ("weights/b", "weights/a")}])
    (first, start), (second, later) = order
    assert (first, second) == ("weights/a", "weights/b") and later == start + 16
    (tmp_path / "two").mkdir()
    with pytest.raises(ValueError, match=r"x is float32 \(4,\), not float32 \(5,\)"):
        write_rank_file(tmp_path / "two", 0, {"x": LocalTensor(whole((5,)), "float32", lambda: np.ones(4, np.float32))})


def _entry(shape, ranges, file, dtype="float32"):
    nbytes = sum(stop - start for start, stop in ranges) * (2 if dtype == "bfloat16" else 4)
    part = {"file": file, "axis": 0, "ranges": ranges, "offset": 64, "bytes": nbytes}
    return {"x": TensorEntry.from_json({"dtype": dtype, "shape": shape, "parts": [part]})}


def test_ranks_that_disagree_are_an_error():
    first = _entry([4], [[0, 2]], "a")
    index = merge([first, _entry([4], [[2, 4]], "b")])
    assert Index.from_json(json.loads(json.dumps(index.to_json()))) == index
    for second, message in (
        (_entry([4], [[1, 4]], "b"), "x has parts that overlap at 1"),
        (_entry([4], [[3, 4]], "b"), "x has parts that do not cover it at 3"),
        (_entry([4], [[2, 3]], "b"), "x has parts that end at 3 of 4"),
        (_entry([5], [[2, 5]], "b"), "ranks disagree about x"),
        (_entry([4], [[2, 4]], "b", "bfloat16"), "ranks disagree about x"),
        (_entry([4], [[2, 4]], "a"), "x has two parts in one file"),
    ):
        with pytest.raises(ValueError, match=message):
            merge([first, second])


def test_the_format_does_not_import_paddle():
    code = (
        "import sys\n"
        "from paddle_llm.checkpoint.format import index, manifest, reader, state, verify, writer\n"
        "assert not {'paddle', 'paddlenlp', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_manifest_has_the_origin(folder):
    manifest = read_manifest(folder)
    assert manifest.settings == {"learning_rate": 1e-4, "betas": [0.9, 0.95]} and manifest.layout["tensor"] == 2
    assert set(manifest.files) | {"manifest.json"} == {path.name for path in folder.iterdir()}
    assert (
        manifest.nbytes
        == sum(path.stat().st_size for path in folder.iterdir()) - (folder / "manifest.json").stat().st_size
    )
