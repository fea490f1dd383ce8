"""`paddle-llm generate`: every family continues prompts, padded ones as unpadded, from PaddleNLP's and other files."""

from __future__ import annotations

import json
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from click.testing import CliRunner
from safetensors.numpy import save_file

from paddle_llm.config.errors import UserError
from paddle_llm.models.generate import continue_prompts, generate, load_for_generation
from tests.models.building import WRITERS, as_hugging_face, build, weights

VOCABULARY = 400
MARKS = ["<sop>", "<eop>", "[MASK]", "[gMASK]", "<n>", "<|tab|>", "<|blank_2|>"]
LONG, SHORT = "The class statement defines", "An object"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """A small sentencepiece model of Python's own documentation, with ChatGLM-6B's marks."""
    prefix = tmp_path_factory.mktemp("pieces") / "words"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(pydoc_data.topics.topics.values()).splitlines()),
        model_prefix=str(prefix),
        vocab_size=VOCABULARY,
        character_coverage=0.99,
        byte_fallback=True,
        pad_id=3,
        user_defined_symbols=MARKS,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def folder_of(family: str, pieces: Path, folder: Path, seed: int = 5) -> Path:
    """A model folder as Hugging Face's files with random weights, and a tokenizer."""
    words = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    overrides = {"padded_vocab_size" if family == "chatglm_v2" else "vocab_size": VOCABULARY, "initializer_range": 0.3}
    if family == "chatglm":
        names = {
            "bos_token_id": "<sop>",
            "eos_token_id": "<eop>",
            "gmask_token_id": "[gMASK]",
            "mask_token_id": "[MASK]",
        }
        overrides |= {key: words.piece_to_id(mark) for key, mark in names.items()}
    WRITERS[family](folder, **overrides)
    tensors = as_hugging_face(weights(build(folder, seed=seed), family), family)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kind, name = ("ChatGLM", "ice_text.model") if family == "chatglm" else ("Llama", "sentencepiece.bpe.model")
    (folder / name).write_bytes(pieces.read_bytes())
    tokenizer = (
        {"tokenizer_class": f"{kind}Tokenizer", "num_image_tokens": 0}
        if family == "chatglm"
        else {"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>"}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("family", WRITERS)
def test_padded_prompts_continue_as_unpadded_ones(tmp_path, pieces, family):
    network, words = load_for_generation(folder_of(family, pieces, tmp_path), tmp_path, "cpu")
    together = continue_prompts(network, words, [LONG, SHORT], 10)
    alone = [continue_prompts(network, words, [prompt], 10)[0] for prompt in (LONG, SHORT)]
    assert together == alone
    assert all(text.startswith(p) and len(text) > len(p) for text, p in zip(together, (LONG, SHORT), strict=True))


@pytest.mark.parametrize("family", ["llama", "chatglm_v2", "bloom"])
def test_greedy_takes_the_likeliest_token_of_the_network(tmp_path, pieces, family):
    """With a cache of keys and values, step by step, as from the whole text at once."""
    import paddle

    network, words = load_for_generation(folder_of(family, pieces, tmp_path), tmp_path, "cpu")
    ids = words(LONG)["input_ids"]
    grown = list(ids)
    for _ in range(6):
        grown.append(int(network(paddle.to_tensor([grown]))[0][0, -1].argmax()))
    inputs = {"input_ids": paddle.to_tensor([ids]), "attention_mask": paddle.ones([1, len(ids)], "int64")}
    found, _ = network.generate(**inputs, max_new_tokens=6, eos_token_id=-1, pad_token_id=0)
    assert found.tolist()[0] == grown[len(ids) :]


def test_sampling_follows_its_seed(tmp_path, pieces):
    network, words = load_for_generation(folder_of("llama", pieces, tmp_path), tmp_path, "cpu")
    choice = {"temperature": 2.0, "top_p": 1.0, "top_k": 0}
    texts = [continue_prompts(network, words, [LONG], 12, sampling=choice, seed=seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    one = {"temperature": 1.0, "top_p": 1.0, "top_k": 1}
    greedy = continue_prompts(network, words, [LONG], 12)
    assert continue_prompts(network, words, [LONG], 12, sampling=one, seed=3) == greedy


def test_too_many_tokens_are_refused(tmp_path, pieces):
    network, words = load_for_generation(folder_of("llama", pieces, tmp_path), tmp_path, "cpu")
    with pytest.raises(UserError, match="128 positions; at most"):
        continue_prompts(network, words, [LONG], 126)
    with pytest.raises(UserError, match="empty"):
        continue_prompts(network, words, [""], 4)


def test_the_command_prints_the_text_alone(tmp_path, pieces):
    folder = folder_of("llama", pieces, tmp_path)
    command = [
        sys.executable,
        "-m",
        "paddle_llm.cli",
        "generate",
        str(folder),
        "--prompt",
        LONG,
        "--max_new_tokens",
        "8",
    ]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    network, words = load_for_generation(folder, folder, "cpu")
    assert done.stdout == continue_prompts(network, words, [LONG], 8)[0] + "\n"
    assert "Traceback" not in done.stderr and "trainer" not in done.stderr


def test_help_has_examples_and_missing_folders_are_told(tmp_path):
    assert "paddle-llm generate output" in CliRunner().invoke(generate, ["--help"]).output
    result = CliRunner().invoke(generate, [str(tmp_path / "none"), "--prompt", "x"])
    assert isinstance(result.exception, UserError)
