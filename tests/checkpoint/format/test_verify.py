"""Every damage to a checkpoint is refused with the name of the file."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from paddle_llm.checkpoint.format.digested_file import BLOCK_BYTES
from paddle_llm.checkpoint.format.manifest import (
    DamagedCheckpoint,
    Manifest,
    has_this_format,
    read_json,
    read_manifest,
    seal,
)
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.state import STATE, decode
from paddle_llm.checkpoint.format.verify import problem_of, verify
from paddle_llm.checkpoint.format.writer import LocalTensor, finish, write_rank_file
from tests.checkpoint.format import small

RANK_0 = "rank-00000.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint-10")


def flip(path, position=-1, bits=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


def change_json(name, change):
    """Change a JSON file, and the manifest as a program would that writes wrong files with right digests."""

    def harm(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        reseal(folder)

    return harm


def reseal(folder):
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    seal(folder, Manifest(**{**manifest.__dict__, "files": {}}), {})


def change_manifest(change):
    def harm(folder):
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return harm


def entry(key, **changes):
    return change_json("index.json", lambda content: content["tensors"][key].update(changes))


def part(key, **changes):
    return change_json("index.json", lambda content: content["tensors"][key]["parts"][0].update(changes))


def swap_files(folder):
    for left, right in ((RANK_0, "x"), ("rank-00001.safetensors", RANK_0), ("x", "rank-00001.safetensors")):
        (folder / left).rename(folder / right)


# (damage, file in the message, problem), found by a fast verification
FAST = {
    "truncated": (lambda f: os.truncate(f / RANK_0, 100), RANK_0, "has 100 bytes, not"),
    "longer": (lambda f: os.truncate(f / RANK_0, 10_000), RANK_0, "has 10000 bytes, not"),
    "missing": (lambda f: (f / "rank-00003.safetensors").unlink(), "rank-00003.safetensors", "is missing"),
    "missing state": (lambda f: (f / STATE).unlink(), STATE, "is missing"),
    "missing index": (lambda f: (f / "index.json").unlink(), "index.json", "is missing"),
    "missing manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json", "is missing"),
    "extra": (lambda f: (f / "rank-00004.safetensors").touch(), "rank-00004.safetensors", "is not in manifest.json"),
    "extra below": (lambda f: ((f / "a").mkdir(), (f / "a" / "b").touch()), "a/b", "is not in manifest.json"),
    "folder": (lambda f: ((f / STATE).unlink(), (f / STATE).mkdir()), STATE, "is missing"),
    "other rank's": (swap_files, RANK_0, "has 704 bytes, not"),
    "config": (lambda f: flip(f / "config.json"), "config.json", "has the digest"),
    "state": (lambda f: flip(f / STATE), STATE, "has the digest"),
    "index": (lambda f: flip(f / "index.json"), "index.json", "has the digest"),
    "manifest": (change_manifest(lambda m: m.update(step=11)), "manifest.json", "does not have the digest"),
    "no digest": (change_manifest(lambda m: m.pop("digest")), "manifest.json", "does not have the digest"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json", "is not valid JSON"),
    "deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json", "nested too deeply"),
    "version": (change_manifest(lambda m: m.update(version=2)), "manifest.json", "has format version 2"),
    "header": (lambda f: flip(f / RANK_0, 9), RANK_0, "has a header that cannot be read"),
    "length of the header": (lambda f: flip(f / RANK_0, 6, 255), RANK_0, "has a header that cannot be read"),
    "dtype": (entry("weights/embed", dtype="float16"), "rank-0000", "for weights/embed, but index.json has"),
    "shape": (entry("moment1/norm", shape=[2, 3]), "index.json", "moment1/norm has parts that end at 6 of 2"),
    "unknown dtype": (entry("weights/embed", dtype="int4"), "index.json", "weights/embed has an unknown type: int4"),
    "unknown key": (entry("weights/embed", stride=1), "index.json", "weights/embed has an invalid entry"),
    "overlap": (part("weights/embed", ranges=[[2, 8]]), "index.json", "weights/embed has parts that"),
    "reversed": (part("weights/embed", ranges=[[6, 0]]), "index.json", "weights/embed"),
    "bytes": (part("weights/embed", bytes=1), "index.json", "has a part in rank-0"),
    "axis": (part("weights/norm", axis=1), "index.json", "weights/norm is split along axis 1"),
    "negative": (part("weights/norm", offset=-8), "index.json", "has a part with an invalid number"),
    "other file": (part("weights/norm", file="/etc/passwd"), "index.json", "names /etc/passwd, which is not in"),
    "no part": (entry("weights/norm", parts=[]), "index.json", "weights/norm has no parts"),
    "offset": (part("state/scale", offset=8), "rank-0000", "for state/scale, but index.json has"),
    "not in the index": (
        change_json("index.json", lambda content: content["tensors"].pop("state/flags")),
        "rank-0000",
        "contains state/flags, which is not in index.json",
    ),
}


@pytest.mark.parametrize("name", FAST)
def test_damage_is_refused_with_the_name_of_the_file(folder, name):
    harm, file, problem = FAST[name]
    harm(folder)
    for level in ("fast", "full"):
        with pytest.raises(DamagedCheckpoint) as refusal:
            verify(folder, level)
        assert refusal.value.file.startswith(file) and problem in refusal.value.problem, refusal.value
        assert str(refusal.value).startswith(f"{folder} is damaged: {refusal.value.file} ")


def test_a_flipped_byte_in_a_tensor_needs_a_full_verification(folder):
    flip(folder / RANK_0)
    assert problem_of(folder, "fast") is None
    assert f"{RANK_0} has the digest" in problem_of(folder, "full")
    with Reader(folder, digests=True) as reader:
        keys = [key for key, entry in reader.index.tensors.items() if entry.parts[0].file == RANK_0]
        reader.tensor(keys[0])
        with pytest.raises(DamagedCheckpoint, match=f"{RANK_0} has the digest"):
            reader.finish()


@pytest.mark.parametrize("files", [[RANK_0], ["rank-00001.safetensors"]])
def test_ranks_share_the_digests(folder, files):
    flip(folder / RANK_0)
    if RANK_0 in files:
        with pytest.raises(DamagedCheckpoint, match="has the digest"):
            verify(folder, "full", files=files)
    else:
        verify(folder, "full", files=files)
        with Reader(folder, digests=True) as reader, pytest.raises(DamagedCheckpoint, match="has the digest"):
            reader.finish([RANK_0])


def _save_with(folder, key, values, dtype):
    """Save one tensor behind another that is not a multiple of its size."""
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    values = bits if dtype == "bfloat16" else values.astype(dtype)
    tensors = {"state/flag": LocalTensor.of(np.array([True])), key: LocalTensor.of(values)}
    folder.mkdir()
    finish(folder, [write_rank_file(folder, 0, tensors)], Manifest(step=1, layout={}, global_batch=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 6e4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["weights", "master_weights", "moment1"])
def test_weights_that_are_not_finite_are_refused(tmp_path, kind, dtype, value):
    values = np.array([3e4, value, -1], np.float32)
    _save_with(tmp_path / "one", f"{kind}/x", values, dtype)
    if kind == "moment1" or value == 6e4:
        verify(tmp_path / "one", "full")
    else:
        with pytest.raises(DamagedCheckpoint, match=rf"{RANK_0} contains NaN or infinity in {kind}/x"):
            verify(tmp_path / "one", "full")


@pytest.mark.parametrize("position", [0, 2 * BLOCK_BYTES // 4 - 40, 2 * BLOCK_BYTES // 4 - 39, 3_000_000 - 1])
def test_weights_are_checked_in_every_block(tmp_path, position):
    values = np.ones(3_000_000, np.float32)
    values[position] = np.nan
    _save_with(tmp_path / "one", "weights/x", values, "float32")
    with pytest.raises(DamagedCheckpoint, match="contains NaN or infinity in weights/x"):
        verify(tmp_path / "one", "full")
    with Reader(tmp_path / "one", digests=True) as reader, pytest.raises(DamagedCheckpoint, match="NaN or infinity"):
        reader.box("weights/x", [(position, position + 1)])


def test_progress_is_reported(folder):
    done = []
    verify(folder, "full", advance=done.append)
    assert sum(done) == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_which_checkpoints_have_this_format(folder, tmp_path):
    assert has_this_format(folder)
    change_manifest(lambda content: content.pop("format"))(folder)
    assert has_this_format(folder)  # damaged
    (tmp_path / "old").mkdir()
    assert not has_this_format(tmp_path / "old")
    (tmp_path / "old" / "manifest.json").write_text('{"step": 1, "files": {}}')
    assert not has_this_format(tmp_path / "old")


def _content(folder):
    """Everything that a resume reads, decoded."""
    with Reader(folder) as reader:
        arrays = {key: reader.tensor(key).tobytes() for key in reader.index.tensors}
        state = decode(read_json(folder, STATE, reader.manifest.files[STATE]), reader.tensor)
        config = json.loads((folder / "config.json").read_bytes())
        return arrays, repr(state), config, reader.manifest, reader.index


def _position(sizes, number):
    """Return file and position of a byte of the folder by its number."""
    for path, size in sizes.items():
        if number < size:
            return path, number
        number -= size
    raise AssertionError


def _flip_bytes(folder, number):
    """Flip bytes one at a time, in turn in all files; each is refused or leaves the decoded content as it was."""
    random, before = np.random.default_rng(number), _content(folder)
    sizes = {path: path.stat().st_size for path in sorted(folder.iterdir())}
    harmless = 0
    for _ in range(number):
        path, position = _position(sizes, int(random.integers(sum(sizes.values()))))
        with path.open("r+b") as stream:
            stream.seek(position)
            old = stream.read(1)
            stream.seek(position)
            stream.write(bytes([old[0] ^ int(random.integers(1, 256))]))
            stream.flush()
            if problem_of(folder, "full") is None:
                harmless += 1
                assert _content(folder) == before, (path, position)
            stream.seek(position)
            stream.write(old)
    assert _content(folder) == before and problem_of(folder, "full") is None
    return harmless


def test_300_flipped_bytes_are_refused_or_harmless(folder):
    assert _flip_bytes(folder, 300) < 10  # another white space in the manifest


@pytest.mark.slow
def test_10_000_flipped_bytes_are_refused_or_harmless(folder):
    assert _flip_bytes(folder, 10_000) < 100
