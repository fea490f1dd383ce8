"""docs/reference/checkpoint_format.md is enough to read a checkpoint with `safetensors` and `json` alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.checkpoint.format.index import DTYPES
from paddle_llm.checkpoint.format.writer import LocalTensor, finish, write_rank_file
from tests.checkpoint.format import small

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "checkpoint_format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    """Return the functions of the page."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert modules == {"json", "sys", "pathlib", "numpy", "safetensors", "xxhash"}
    names: dict = {}
    exec(code, names)
    return names


@pytest.fixture
def folder(tmp_path):
    return small.save(tmp_path)


def test_every_tensor_is_read(page, folder):
    full = small.tensors()
    split = 0
    for key, values in full.items():
        found = page["read_tensor"](folder, key)
        expected = (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values
        if key.endswith("/embed"):
            expected = expected[: small.WORDS]
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.tobytes() == expected.tobytes(), key
        split += len(json.loads((folder / "index.json").read_text())["tensors"][key]["parts"]) > 1
    assert split >= 4  # of several files


def test_the_state_is_read(page, folder):
    found, expected = page["read_state"](folder), small.STATE_OF_RANK_0
    assert repr(found) == repr(expected)
    np.testing.assert_array_equal(found["random"][1], expected["random"][1])


def test_arrays_of_16_bits_keep_their_bits(page, tmp_path):
    values = np.arange(5, dtype=np.uint16)
    finish(tmp_path, [write_rank_file(tmp_path, 0, {"state/x": LocalTensor.of(values)})], small.manifest(1))
    found = page["read_tensor"](tmp_path, "state/x")
    assert found.dtype == np.uint16 and (found == values).all()


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "state.json", "config.json", "index.json"])
def test_digests_are_compared(page, folder, name):
    assert page["damaged_files"](folder) == []
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert page["damaged_files"](folder) == [name]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "step": 11}))
    assert page["damaged_files"](folder) == ["manifest.json", name]


def test_the_script_prints_the_tensors(folder):
    script = ROOT / "examples" / "read_checkpoint.py"
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=True)
    first, *lines = done.stdout.splitlines()
    assert first == "damaged files: none"
    assert len(lines) == len(json.loads((folder / "index.json").read_text())["tensors"])
    assert "weights/embed float32 [11, 6]" in lines and "state/scale float64 []" in lines


def _rows(after: str) -> set[str]:
    """Return the names in the first column of the table after a line."""
    table = PAGE[PAGE.index(after) :].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines()[2:])))


def test_the_tables_have_the_keys_of_the_files(folder):
    manifest, index = (json.loads((folder / name).read_text()) for name in ("manifest.json", "index.json"))
    assert _rows("| key | content |") == set(manifest)
    assert set(manifest["layout"]) <= set(re.findall(r"`(\w+)`", PAGE))
    entry = index["tensors"]["weights/embed"]
    assert _rows("| key of a tensor |") == set(entry)
    assert _rows("| key of a part |") == set(entry["parts"][0])
    types = next(line for line in PAGE.splitlines() if line.startswith("| `dtype` |"))
    assert set(re.findall(r"`(\w+)`", types)) == {"dtype", *DTYPES}


def test_the_list_of_objects_is_that_of_the_code():
    source = (ROOT / "paddle_llm" / "checkpoint" / "format" / "state.py").read_text()
    marks = set(re.findall(r'mark == "(\$\w+)"', source))
    assert len(marks) == 5 and {f'`{{"{mark}": ' for mark in marks} == set(
        re.findall(r'^\| (`\{"\$\w+": )', PAGE, re.M)
    )
