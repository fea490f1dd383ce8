"""Pickles of torch are read only if allowed, without torch, and only tensors are read."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.torch_pickles import scan_torch_pickle

torch = pytest.importorskip("torch", reason="files of torch are written by torch (extra hf)")
pytestmark = pytest.mark.hf


def tensors() -> dict:
    whole = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    return OrderedDict(
        plain=whole,
        turned=whole.T,
        slice=whole[1:4, 2:9:3],
        short=whole.to(torch.bfloat16) / 7,
        half=whole.half() / 7,
        counts=torch.arange(5),
        parameter=torch.nn.Parameter(whole + 1),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 4),
    )


def test_every_tensor_is_read_as_torch_reads_it(tmp_path):
    saved = tensors()
    torch.save(saved, tmp_path / "pytorch_model.bin")
    files = WeightFiles(tmp_path, allow_pickle=True)
    assert files.names() == list(saved) and files.format == "pt"
    for name, value in saved.items():
        wanted = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
        assert files.shape(name) == wanted.shape
        found = files.read(name, 0, 0, wanted.shape[0] if wanted.ndim else 0)
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    np.testing.assert_array_equal(files.read("turned", 1, 2, 5), saved["turned"][:, 2:5].numpy())


def test_a_pickle_is_refused_unless_allowed(tmp_path):
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="--allow_pickle.*safe_serialization=True"):
        WeightFiles(tmp_path)


class Harmful:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (self.trace, "w"))


def test_a_pickle_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"weight": torch.ones(2), "other": Harmful(str(trace))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="names .*open"):
        scan_torch_pickle(tmp_path / "pytorch_model.bin")
    assert not trace.exists()


def test_broken_files_are_reported(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut off"):
        scan_torch_pickle(file)
    torch.save(tensors(), file, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="1.6 or later"):
        scan_torch_pickle(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="contains a list"):
        scan_torch_pickle(file)
