"""Opening a saved program: process settings and huge pages."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError

_LARGE = 36 << 20


def _has_huge_pages() -> bool:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return enabled.is_file() and "[never]" not in enabled.read_text()


def _anonymous_huge_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def test_large_memory_moves_into_huge_pages_unchanged():
    from paddle_llm.generation.static.predictor import _use_huge_pages

    with mmap.mmap(-1, _LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        values = bytes(range(256)) * (_LARGE // 256)
        memory.write(values)
        before = _anonymous_huge_bytes()
        _use_huge_pages()
        assert memory[:] == values
        if _kernel() >= (6, 1) and _has_huge_pages():  # older kernels move it later, in the background
            assert _anonymous_huge_bytes() - before >= _LARGE // 2


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, Path("/proc/sys/kernel/osrelease").read_text().split(".")[:2]))


def test_a_program_with_other_inputs_is_refused(tmp_path):
    """Earlier versions exported programs that did not write the keys and values themselves."""
    import paddle
    from paddle.static import InputSpec

    from paddle_llm.generation.static_network import StaticModel

    tokens = InputSpec([None, None], "int64", "input_ids")
    paddle.jit.save(paddle.jit.to_static(paddle.nn.Embedding(8, 4), input_spec=[tokens]), str(tmp_path / "model"))
    (tmp_path / "step.json").write_text(json.dumps(_STEP))
    with pytest.raises(UserError, match="was written by another version. Export the model again"):
        StaticModel(tmp_path)


_STEP = {
    "family": "llama",
    "dtype": "float32",
    "vocab_size": 8,
    "layers": 1,
    "kv_heads": 1,
    "head_width": 4,
    "max_position_embeddings": 16,
    "position_rows": 1,
    "key_places": False,
    "end_ids": [],
}
