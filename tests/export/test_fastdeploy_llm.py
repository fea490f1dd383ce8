"""FastDeploy 1.x's own front end answers from our static export: the one piece of FastDeploy that runs without a GPU.

Its engine is a small one for the CPU (fastdeploy_llm_engine.py). Nothing is proven here of FastDeploy's GPU engines, nor of 2.x.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export import fastdeploy_llm_engine
from tests.export.environments import ROOT, alone, fastdeploy_llm_path
from tests.helpers.models.folders import VOCABULARY, train_pieces, write_folder

TEXTS = [
    "The",
    "Every object has an identity",
    "今天天气很好",
    "x = [1, 2]",
    "if the class defines",
    "A",
    "return value + 1",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY - 1}  # every token is a piece
    return write_folder("llama", train_pieces(folder), folder / "llama", **sizes)


def greedy(folder: Path, max_new_tokens: list[int]) -> list[list[int]]:
    """Return the continuations of the source, by PaddleNLP's network without an export."""
    from paddle_llm.generation.decoding.decode import decode
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.generation.network import load_network, start_process
    from paddle_llm.generation.options import DecodeOptions
    from paddle_llm.generation.prompts import encode_text

    loaded = load_network(folder, *start_process("cpu"))
    prompts = [encode_text(loaded.codec, text) for text in TEXTS]
    with generating(loaded.model):
        return decode(loaded.model, prompts, max_new_tokens, DecodeOptions(loaded.family, loaded.stop_ids))


@pytest.mark.slow
def test_its_serving_model_streams_our_greedy_tokens(tmp_path, source):
    """Seven tasks of unequal lengths share three slots: texts continue while others start."""
    from paddle_llm.export import export

    export(source, "static", tmp_path / "static", verify=False)
    (tmp_path / "questions.json").write_text(json.dumps(TEXTS))
    (tmp_path / "work").mkdir()  # it writes its log and the files of its steps to the working folder
    with alone("fastdeploy-llm-serving"):
        done = subprocess.run(
            [sys.executable, fastdeploy_llm_engine.__file__, "serve", tmp_path / "static", tmp_path / "questions.json"],
            cwd=tmp_path / "work",
            env=os.environ | {"PYTHONPATH": f"{fastdeploy_llm_path()}:{ROOT}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    streamed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"task"')]
    limits = [fastdeploy_llm_engine.NEW_TOKENS - number % 3 for number in range(len(TEXTS))]
    expected = greedy(source, limits)
    # It ends each text with the end token of config.json, also if the network generated it or the limit is reached.
    assert [one["tokens"] for one in streamed] == [[*tokens, 2] for tokens in expected]
    assert all(one["text"] for one in streamed)
    assert len({tuple(tokens) for tokens in expected}) == len(TEXTS)
