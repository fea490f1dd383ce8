"""Target gguf: weights as transformers and the `gguf` package read them, and tokenizers that llama.cpp cannot run are refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from tests.export.environments import ROOT, llama_cpp_path, smollm2_folder
from tests.export.folders import random_weights, write_native

SIZE = 704
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def texts() -> list[str]:
    return [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md", "docs/glossary.md")]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """Return the folder of a sentencepiece BPE tokenizer."""
    from paddle_llm.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("pieces")
    train_tokenizer(texts(), str(folder), SIZE, model_type="bpe", character_coverage=0.98)
    return folder


def byte_level(folder: Path, split: str | None, normalizer: str | None = None) -> Path:
    """Write a tokenizer of BPE over bytes, as Hugging Face's `tokenizers` trains it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    steps = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_of_words])
    if normalizer:
        tokenizer.normalizer = getattr(normalizers, normalizer)()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=SIZE - 2, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def model(folder: Path, family: str, tokenizer: Path | None, dtype: str = "float32", **changes) -> Path:
    changes = {"hidden_size": 64, "vocab_size": SIZE, **changes}
    write_native(folder, family, dtype, **changes)
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def contents(file: Path) -> dict[str, object]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.hf
@pytest.mark.parametrize(
    ("family", "stored", "dtype"),
    [
        ("llama", "float32", None),
        ("llama", "bfloat16", "q8_0"),
        ("qwen2", "bfloat16", None),
        ("mistral", "float32", "float16"),
    ],
)
def test_transformers_computes_the_same(pieces, tmp_path, family, stored, dtype):
    from paddle_llm.export import export

    source = model(tmp_path / "model", family, pieces, stored)
    done = export(source, "gguf", tmp_path / "out", dtype=dtype)
    findings = {(finding.engine.split(" ")[0], finding.what): finding for finding in done.findings}
    logits = findings["transformers", "logits and greedy tokens"]
    # Five prompts with 16 tokens each; the sliding window of 10 tokens leaves 5.
    assert logits.passed and logits.tokens == 5 * (5 if family == "mistral" else 16)
    assert next(finding for finding in done.findings if finding.engine == "gguf").passed
    assert set(done.files) == {"model.gguf", "README.md", "export.json"}


@pytest.mark.hf
def test_weights_in_the_wrong_order_are_found(pieces, tmp_path, monkeypatch):
    """Writer and reader agree here, so that only the other engine can find it."""
    from paddle_llm.export import export
    from paddle_llm.export.targets.gguf import tensors
    from paddle_llm.export.verification import gguf_file
    from paddle_llm.export.verification.report import ExportFailed

    monkeypatch.setattr(tensors, "interleaved", lambda values, heads: values)
    monkeypatch.setattr(gguf_file, "halved", lambda values, heads: values)
    with pytest.raises(ExportFailed, match="transformers .*logits"):
        export(model(tmp_path / "model", "llama", pieces), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_with_another_value_is_found(pieces, tmp_path):
    from paddle_llm.export import export
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.verification.gguf_file import of_weights
    from paddle_llm.models.weights.files import write_safetensors

    source = model(tmp_path / "model", "llama", pieces)
    export(source, "gguf", tmp_path / "out", engines=["transformers"], verify=False)
    assert of_weights(open_source(source), tmp_path / "out").passed
    weights = random_weights(source, "llama")
    weights["llama.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    write_safetensors(source / "model.safetensors", weights)
    found = of_weights(open_source(source), tmp_path / "out")
    assert not found.passed and found.note == "llama.layers.1.mlp.up_proj.weight differs"


def test_q8_0_rounds_to_half_a_step(pieces, tmp_path):
    from gguf import GGUFReader, dequantize

    from paddle_llm.export import export

    source = model(tmp_path / "model", "qwen2", pieces)
    export(source, "gguf", tmp_path / "out", dtype="q8_0", verify=False)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    weight = random_weights(source, "qwen2")["qwen2.layers.0.mlp.up_proj.weight"].T
    found = dequantize(tensors["blk.0.ffn_up.weight"].data, tensors["blk.0.ffn_up.weight"].tensor_type)
    steps = np.abs(weight).reshape(-1, 32).max(axis=1, keepdims=True) / 127
    # Half a step, and the rounding of the f16 scale: at most 127 steps times 2**-11.
    assert (np.abs(found - weight).reshape(-1, 32) <= steps * (0.5 + 127 / 2048)).all()
    assert np.abs(found - weight).max() > 0
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize(
    ("split", "rules"), [(None, "gpt-2"), (LLAMA_3, "llama-bpe"), (LLAMA_3.replace("{1,3}", ""), "qwen2")]
)
def test_bpe_over_bytes_names_its_rules(tmp_path, split, rules):
    from paddle_llm.export import export

    tokenizer = byte_level(tmp_path / "tokenizer", split)
    export(model(tmp_path / "model", "qwen2", tokenizer, vocab_size=736), "gguf", tmp_path / "out", verify=False)
    found = contents(tmp_path / "out" / "model.gguf")
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", rules)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in content["model"]["merges"]]
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    number = content["added_tokens"][0]["id"]
    assert len(tokens) == 736 and tokens[number] == "<|end|>" and types[number] == 3 and types[-1] == 5
    ends = {found[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot")}
    assert ends == {2, number} and not found["tokenizer.ggml.add_bos_token"]  # 2: of config.json


def test_scores_of_pieces_order_the_merges(pieces, tmp_path):
    """llama.cpp merges by scores; sentencepiece's own scores have the same order."""
    from paddle_llm.data.tokenizers.sentencepiece_model import NORMAL, read_model
    from paddle_llm.export import export

    export(model(tmp_path / "model", "llama", pieces), "gguf", tmp_path / "out", verify=False)
    found = contents(tmp_path / "out" / "model.gguf")
    known = read_model(pieces / "sentencepiece.bpe.model").pieces
    scores = found["tokenizer.ggml.scores"]
    merged = [number for number, piece in enumerate(known) if piece.type == NORMAL and len(piece.text) > 1]
    assert len(merged) > 100
    by_score = sorted(merged, key=lambda number: -scores[number])
    assert by_score == sorted(merged, key=lambda number: -known[number].score)
    assert found["tokenizer.ggml.add_space_prefix"] and found["tokenizer.ggml.add_bos_token"]


def test_llama_3_rope_equals_transformers(pieces, tmp_path):
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    from gguf import GGUFReader

    from paddle_llm.export import export

    source = model(tmp_path / "model", "llama", pieces, rope_scaling=scaling, rope_theta=10000.0)
    done = export(source, "gguf", tmp_path / "out")
    notes = [finding.note for finding in done.findings if finding.engine == "transformers"]
    assert notes == ["not run: transformers ignores scaled RoPE in GGUF files"]
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    code = (
        "import sys, json, transformers; from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS as F;"
        "config = transformers.AutoConfig.from_pretrained(sys.argv[1]);"
        "print(json.dumps(F['llama3'](config, 'cpu')[0].tolist()))"
    )
    export(source, "hf", tmp_path / "hf", verify=False)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "hf")], capture_output=True, text=True, check=True
    )
    theirs, width = np.array(json.loads(done.stdout)), 2 * len(tensors["rope_freqs.weight"])
    plain = 10000.0 ** (-np.arange(0, width, 2) / width)
    np.testing.assert_allclose(plain / tensors["rope_freqs.weight"], theirs, rtol=1e-5)
    assert len(set(tensors["rope_freqs.weight"].tolist())) > 2


def refused(source: Path, out: Path) -> str:
    from paddle_llm.export import export

    with pytest.raises(UserError) as error:
        export(source, "gguf", out, verify=False)
    assert not out.exists()
    return str(error.value)


def test_what_llama_cpp_cannot_run_is_refused(pieces, tmp_path):
    from paddle_llm.data.tokenizer import train_tokenizer

    out = tmp_path / "out"
    assert "does not support BLOOM" in refused(write_folder(tmp_path / "bloom", "bloom"), out)
    assert "needs a tokenizer" in refused(model(tmp_path / "none", "llama", None), out)
    unigram = tmp_path / "unigram"
    train_tokenizer(texts(), str(unigram), SIZE, character_coverage=0.98)
    assert "its model is Unigram" in refused(model(tmp_path / "a", "llama", unigram), out)
    other = byte_level(tmp_path / "other", r"\p{L}+|\P{L}+")
    assert r"rules that llama.cpp does not have: \p{L}+" in refused(model(tmp_path / "b", "llama", other), out)
    lower = byte_level(tmp_path / "lower", None, "Lowercase")
    assert "it changes the text first: Lowercase" in refused(model(tmp_path / "c", "llama", lower), out)
    assert "network has 690 embeddings" in refused(model(tmp_path / "d", "llama", pieces, vocab_size=690), out)


def test_q8_0_is_a_type_of_gguf_only(pieces, tmp_path):
    from paddle_llm.export import export

    with pytest.raises(UserError, match="q8_0 is a type of GGUF files"):
        export(model(tmp_path / "model", "llama", pieces), "hf", tmp_path / "out", dtype="q8_0")


def test_merges_that_scores_cannot_express_are_refused():
    from paddle_llm.export.targets.gguf.vocabulary import vocabulary_of

    def tokenizer(merges: list[list[str]]) -> dict:
        tokens = ["a", "b", "c", "ab", "bc", "abc", *(f"<0x{byte:02X}>" for byte in range(256))]
        model = {"type": "BPE", "byte_fallback": True, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        return {"model": model, "normalizer": spaces, "pre_tokenizer": None, "added_tokens": []}

    whole = [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]
    assert vocabulary_of(tokenizer(whole), 262).scores[:6] == [0, 0, 0, -1, -2, -3]
    with pytest.raises(UserError, match="do not contain 'ab' with 'c'"):
        vocabulary_of(tokenizer(whole[:3]), 262)
    with pytest.raises(UserError, match="not one after the other"):
        vocabulary_of(tokenizer([whole[0], whole[2], whole[1], whole[3]]), 262)


def write_folder(folder: Path, family: str) -> Path:
    write_native(folder, family)
    return folder


# ---- llama.cpp ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_llama_cpp() -> dict[str, str]:
    """Return the environment of a process that has llama.cpp's Python bindings."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(llama_cpp_path())])}


def samples() -> list[str]:
    """Return 300 pieces of text, and some that tokenizers treat in different ways."""
    chance, text = random.Random(0), "".join(texts())
    starts = [chance.randrange(len(text)) for _ in range(300)]
    hostile = [
        " ", "  a", "a  b\n\n c", "今天天气很好，我们去公园。", "e\u0301 é", "🙂🙂 \t x", "123456 7.5", "I'll DON'T we'Re",
        "\u2581x \u2581", "<s>x</s>", "<0x41>", "x" * 50, "\u00a0\u3000", "def f(x):\n    return x\r\n", "<|end|>", "\x00\x7f",
    ]  # fmt: skip
    return [*hostile, *(text[start : start + chance.randrange(1, 80)] for start in starts)]


_TOKENIZE = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.loads(sys.stdin.read())
print(json.dumps([model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]))
"""


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("rules", ["sentencepiece", "gpt-2", "llama-bpe", "qwen2"])
def test_llama_cpp_gives_the_same_ids(rules, pieces, tmp_path, with_llama_cpp):
    from paddle_llm.data.tokenizers.text_codec import open_codec
    from paddle_llm.export import export
    from paddle_llm.generation.prompts import encode_text

    splits = {"gpt-2": None, "llama-bpe": LLAMA_3, "qwen2": LLAMA_3.replace("{1,3}", "")}
    tokenizer = pieces if rules == "sentencepiece" else byte_level(tmp_path / "tokenizer", splits[rules])
    export(model(tmp_path / "model", "llama", tokenizer, vocab_size=736), "gguf", tmp_path / "out", verify=False)
    codec, asked = open_codec(str(tokenizer)), samples()
    done = subprocess.run(
        [sys.executable, "-c", _TOKENIZE, str(tmp_path / "out" / "model.gguf")],
        input=json.dumps(asked), env=with_llama_cpp, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [list(encode_text(codec, text).ids) for text in asked]
    differing = [text for text, a, b in zip(asked, json.loads(done.stdout), expected, strict=True) if a != b]
    assert not differing


_EXPORT = """
import sys, json
from dataclasses import asdict
from paddle_llm.export import export
done = export(sys.argv[1], "gguf", sys.argv[2], dtype=sys.argv[3] or None, engines=["llama.cpp"])
print(json.dumps([asdict(finding) for finding in done.findings]))
"""


def by_llama_cpp(source: Path, out: Path, dtype: str, environment: dict[str, str]) -> dict[str, dict]:
    """Export with llama.cpp as the engine and return its findings by what they compare."""
    words = [sys.executable, "-c", _EXPORT, str(source), str(out), dtype]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    findings = json.loads(done.stdout.splitlines()[-1])
    return {finding["what"]: finding for finding in findings if finding["engine"].startswith("llama.cpp")}


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize(("family", "dtype"), [("llama", ""), ("qwen2", ""), ("mistral", ""), ("llama", "q8_0")])
def test_llama_cpp_computes_the_same(family, dtype, pieces, tmp_path, with_llama_cpp):
    found = by_llama_cpp(model(tmp_path / "model", family, pieces), tmp_path / "out", dtype, with_llama_cpp)
    assert found["tokenizer"]["passed"]
    assert set(found) == {"tokenizer"} if dtype else found["logits and greedy tokens"]["passed"]


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_llama_cpp_scales_rope_as_llama_3(pieces, tmp_path, with_llama_cpp):
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    source = model(tmp_path / "model", "llama", pieces, rope_scaling=scaling, rope_theta=10000.0)
    assert by_llama_cpp(source, tmp_path / "out", "", with_llama_cpp)["logits and greedy tokens"]["passed"]


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_llama_cpp_continues_texts_of_a_published_model(tmp_path, with_llama_cpp):
    found = by_llama_cpp(smollm2_folder(), tmp_path / "out", "", with_llama_cpp)
    assert found["tokenizer"]["passed"] and found["logits and greedy tokens"]["passed"]
