"""A .pdparams is read through a memory map: the tensors of paddle.load, with less memory and without running the pickle."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.paddle_pickles import RefusedPickle, read_paddle_pickle, scan_paddle_pickle


def _written(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Return a state with large and small tensors of three types, as paddle.save writes it."""
    import paddle

    numbers = np.random.default_rng(0)
    large = paddle.to_tensor(numbers.standard_normal((300, 200)).astype(np.float32))
    state = {
        "large": large,
        "half": large.astype("float16"),
        "bfloat16": large.astype("bfloat16"),
        "small": large[0, :7],
        "again": paddle.to_tensor(numbers.standard_normal((17, 20_000)).astype(np.float32)),
    }
    paddle.save(state, str(folder / "model_state.pdparams"))
    return folder / "model_state.pdparams", {name: value.numpy() for name, value in state.items()}


def test_every_tensor_equals_the_saved_one(tmp_path):
    file, wanted = _written(tmp_path)
    found = scan_paddle_pickle(file)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        values = tensor.view()
        assert values.dtype == wanted[name].dtype and np.array_equal(values, wanted[name]), name
    assert isinstance(found["large"].data, range) and isinstance(found["small"].data, bytes)
    assert found["bfloat16"].dtype == np.uint16


def test_column_major_and_empty_tensors_are_read(tmp_path):
    state = {"f": np.asfortranarray(np.arange(60_000.0).reshape(200, 300)), "none": np.zeros((0, 3), np.float32)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(state, protocol=4))
    found = scan_paddle_pickle(tmp_path / "a.pdparams")
    assert all(np.array_equal(found[name].view(), state[name]) for name in state)


def test_scanning_reads_no_large_tensor(tmp_path):
    file, _ = _written(tmp_path)
    scan_paddle_pickle(file)
    tracemalloc.start()
    found = scan_paddle_pickle(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 5 and peak < 300_000 < file.stat().st_size


def test_nested_tensors_and_numbers_of_an_optimizer_are_read(tmp_path):
    import paddle

    large = paddle.to_tensor(np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32))
    schedule = {"last_epoch": 3, "last_lr": np.float64(0.25), "milestones": [1, 2]}
    state = {"w_moment1_0": large, "master_weights": {"w": large, "v": large[0]}, "LR_Scheduler": schedule}
    paddle.save(state, str(tmp_path / "optimizer.pdopt"))
    found = read_paddle_pickle(tmp_path / "optimizer.pdopt")
    assert found["LR_Scheduler"] == {"last_epoch": 3, "last_lr": 0.25, "milestones": [1, 2]}
    assert isinstance(found["master_weights"]["w"].data, range)  # mapped, not read
    assert np.array_equal(found["master_weights"]["w"].view(), large.numpy())
    assert np.array_equal(found["master_weights"]["v"].view(), large[0].numpy())
    assert scan_paddle_pickle(tmp_path / "optimizer.pdopt").keys() == {"w_moment1_0"}


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize("kind", ["evil", "nested evil", "objects", "cut", "list", "text"])
def test_other_files_than_weights_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _ = _written(tmp_path)
    contents = {
        "evil": pickle.dumps({"w": _Evil()}, protocol=4),
        "nested evil": pickle.dumps({"master_weights": {"w": (1, [_Evil()])}}, protocol=4),
        "objects": pickle.dumps({"w": np.array([None, "x"], dtype=object)}, protocol=4),
        "cut": file.read_bytes()[:200_000],
        "list": pickle.dumps([np.zeros(3)], protocol=4),
        "text": b"not a pickle at all",
    }
    file.write_bytes(contents[kind])
    message = "posix.mkdir" if "evil" in kind else "not a file of PaddlePaddle weights"
    with pytest.raises(UserError, match=message):
        scan_paddle_pickle(file)
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_a_refused_file_is_not_run_by_paddle_either(tmp_path):
    """WeightFiles passes files of older protocols to Paddle, whose reader runs every function that a pickle names."""
    from paddle_llm.models.weights.files import WeightFiles

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps({"w": Evil()}, protocol=4))
    with pytest.raises(RefusedPickle, match="its pickle names posix.mkdir"):
        WeightFiles(tmp_path)
    assert not (tmp_path / "ran").exists()
