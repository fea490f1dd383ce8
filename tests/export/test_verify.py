"""A verification passes an export that equals its source, and detects every silent difference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddle_llm.core.errors import UserError
from paddle_llm.export.verification.compare import LIMIT, compare
from paddle_llm.export.verification.engines.question import Answers
from paddle_llm.models.prompt import Prompt
from tests.helpers.models.folders import VOCABULARY, write_folder
from tests.helpers.models.networks import WRITERS

WEIGHTS = "model.safetensors"
LAYERS = 2
LOGITS, TOKENIZER, CONFIGURATION = "logits and greedy tokens", "tokenizer", "configuration and end tokens"


@pytest.fixture(scope="module")
def llama(tmp_path_factory, pieces) -> Path:
    return write_folder("llama", pieces, tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=LAYERS)


@pytest.fixture
def export(tmp_path, llama) -> Path:
    """A folder in Hugging Face's layout that is the source, written by nothing under test."""
    return Path(shutil.copytree(llama, tmp_path / "export"))


def verified(source: Path, folder: Path, **options):
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.verification.verify import verify

    return verify(open_source(source), folder, "hf", **{"engines": ["paddle"], **options})


def failed(findings) -> set[str]:
    return {finding.what for finding in findings if finding.passed is False}


def test_an_equal_export_passes(llama, export):
    findings = verified(llama, export)
    assert [finding.what for finding in findings] == [CONFIGURATION, TOKENIZER, LOGITS]
    assert all(finding.passed for finding in findings)
    logits = findings[-1]
    assert logits.engine.startswith("paddle 3")
    assert logits.prompts >= 4 and logits.tokens_equal == logits.tokens == 16 * logits.prompts
    assert logits.largest_logit_difference < LIMIT / 10


def test_the_greedy_texts_are_texts(llama, export):
    """A network that repeats one token would agree with many wrong ones."""
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.verification import verify
    from paddle_llm.export.verification.engines import in_paddle

    question, _ = verify._question(open_source(llama), export, None, 16, 1 << 20)
    answers = in_paddle.answer(question)
    assert len({tuple(tokens) for tokens in answers.tokens}) == len(answers.tokens)
    assert np.mean([len(set(tokens)) for tokens in answers.tokens]) > 8
    assert len({len(prompt) for prompt in question.prompts}) == len(question.prompts)


@pytest.mark.parametrize("family", [family for family in WRITERS if family != "llama"])
def test_every_family_passes(tmp_path, pieces, family):
    folder = write_folder(family, pieces, tmp_path / family)
    findings = verified(folder, folder)
    assert failed(findings) == set() and findings[-1].tokens_equal == findings[-1].tokens > 0


# ---- traps ----------------------------------------------------------------------------------------------------------


def in_config(**changes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        assert all(config[key] != value for key, value in changes.items())
        file.write_text(json.dumps(config | changes))

    return damage


def in_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def of(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}.weight"


def not_transposed(tensors: dict[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        if value.ndim == 2 and value.shape[0] == value.shape[1]:
            tensors[name] = value.T


def layers_swapped(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        other = name.replace(".layers.0.", ".layers.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def q_and_k_swapped(tensors: dict[str, np.ndarray]) -> None:
    for layer in range(LAYERS):
        q, k = of(layer, "self_attn.q_proj"), of(layer, "self_attn.k_proj")
        tensors[q], tensors[k] = tensors[k], tensors[q]


def gate_and_up_swapped(tensors: dict[str, np.ndarray]) -> None:
    gate, up = of(1, "mlp.gate_proj"), of(1, "mlp.up_proj")
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def a_head_swapped(tensors: dict[str, np.ndarray]) -> None:
    values = tensors[of(0, "self_attn.v_proj")]
    values[:16], values[16:32] = values[16:32].copy(), values[:16].copy()


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"][3] = np.nan


def without_a_tensor(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.norm.weight"]


def of_another_shape(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :32]


def rounded_to_bits(tensors: dict[str, np.ndarray]) -> None:
    """The head, truncated to bfloat16 instead of rounded."""
    bits = tensors["lm_head.weight"].view(np.uint32) & np.uint32(0xFFFF0000)
    tensors["lm_head.weight"] = bits.view(np.float32)


TRAPS = {
    "square matrices not transposed": (in_weights(not_transposed), {LOGITS}),
    "two layers swapped": (in_weights(layers_swapped), {LOGITS}),
    "query and key swapped": (in_weights(q_and_k_swapped), {LOGITS}),
    "gate and up swapped": (in_weights(gate_and_up_swapped), {LOGITS}),
    "two heads swapped": (in_weights(a_head_swapped), {LOGITS}),
    "not a number": (in_weights(not_a_number), {LOGITS}),
    "a tensor missing": (in_weights(without_a_tensor), {LOGITS}),
    "a wrong shape": (in_weights(of_another_shape), {LOGITS}),
    "bits cut off": (in_weights(rounded_to_bits), {LOGITS}),
    "another RoPE": (in_config(rope_theta=500000.0), {LOGITS, CONFIGURATION}),
    "another epsilon": (in_config(rms_norm_eps=1e-5), {CONFIGURATION}),
    "another end": (in_config(eos_token_id=7), {CONFIGURATION}),
    "more positions": (in_config(max_position_embeddings=256), {CONFIGURATION}),
    "other heads": (in_config(num_attention_heads=8, num_key_value_heads=8), {CONFIGURATION, LOGITS}),
    "a tied head": (in_config(tie_word_embeddings=True), {CONFIGURATION, LOGITS}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_mistake_is_detected(llama, export, trap):
    damage, wanted = TRAPS[trap]
    damage(export)
    findings = verified(llama, export)
    assert failed(findings) == wanted
    assert all(finding.note for finding in findings if finding.passed is False)


def test_an_end_token_only_in_generation_config_counts(llama, export):
    """transformers and FastDeploy read it there first."""
    (export / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert failed(verified(llama, export)) == set()
    (export / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert failed(verified(llama, export)) == {CONFIGURATION}


def test_a_tokenizer_with_other_ids_is_detected(tmp_path, llama, export):
    import sentencepiece

    prefix = tmp_path / "others"
    sentences = iter(f"{number} words of another kind" for number in range(400))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_prefix=str(prefix),
        vocab_size=300,
        byte_fallback=True,
        pad_id=3,
        minloglevel=2,
    )
    (export / "sentencepiece.bpe.model").write_bytes(prefix.with_suffix(".model").read_bytes())
    assert failed(verified(llama, export)) == {TOKENIZER}


def test_the_tokenizer_of_another_model_is_reported(tmp_path, pieces):
    folder = write_folder("llama", pieces, tmp_path / "llama", vocab_size=VOCABULARY - 200, num_hidden_layers=1)
    findings = verified(folder, folder)
    assert failed(findings) == {TOKENIZER} and "not the tokenizer of this model" in findings[0].note


# ---- the question ---------------------------------------------------------------------------------------------------


def test_16_bit_exports_have_the_same_limit(llama, export):
    """The source's weights are rounded as the export's; without that the difference is far beyond the limit."""
    import paddle

    tensors = load_file(export / WEIGHTS)
    rounded = {name: paddle.to_tensor(value).astype("float16").numpy() for name, value in tensors.items()}
    save_file(rounded, export / WEIGHTS, metadata={"format": "pt"})
    assert failed(verified(llama, export)) == set()
    save_file({name: value.astype(np.float32) for name, value in rounded.items()}, export / WEIGHTS, {"format": "pt"})
    assert failed(verified(llama, export)) == {LOGITS}


@pytest.mark.parametrize("family", ["llama", "chatglm"])
def test_random_tokens_are_used_without_a_tokenizer(tmp_path, pieces, family):
    folder = write_folder(family, pieces, tmp_path / family)
    (folder / "tokenizer_config.json").unlink()
    findings = verified(folder, folder)
    assert [finding.what for finding in findings] == [CONFIGURATION, LOGITS] and failed(findings) == set()
    with pytest.raises(UserError, match="no tokenizer"):
        verified(folder, folder, prompts=["The"])


def test_prompts_fit_the_models_positions(tmp_path, pieces):
    folder = write_folder("llama", pieces, tmp_path / "llama", max_position_embeddings=12)
    findings = verified(folder, folder, prompts=[Prompt(list(range(40))), "The"], new_tokens=9)
    assert failed(findings) == set() and findings[-1].tokens == 2 * 6


def test_an_unknown_engine_is_refused(llama, export):
    with pytest.raises(UserError, match=r"'torch' is unknown.*transformers"):
        verified(llama, export, engines=["torch"])


def test_a_missing_engine_is_reported_with_advice(llama, export, monkeypatch):
    monkeypatch.delenv("PADDLE_LLM_PADDLEFORMERS_PYTHON", raising=False)
    finding = verified(llama, export, engines=["paddleformers"])[-1]
    assert finding.passed is None and "launch/paddleformers_env.sh" in finding.note
    with pytest.raises(UserError, match="paddleformers_python"):
        verified(llama, export, engines=["paddleformers"], paddleformers_python=export / "bin" / "python")


# ---- the comparison -------------------------------------------------------------------------------------------------


def answers(tokens, logits) -> Answers:
    return Answers("an engine", [tokens], [np.array(logits, np.float32)])


STEPS = [[0.0, 4.0, 2.0], [5.0, 0.0, 1.0], [1.0, 2.0, 6.0]]


def test_a_tie_is_reported_and_does_not_fail():
    """The tokens after it belong to another text and are not compared."""
    tied = [STEPS[0], [5.0, 5.0 - 1e-4, 1.0], STEPS[2]]
    other = [STEPS[0], [5.0 - 1e-4, 5.0, 1.0], [9.0, 0.0, 0.0]]
    finding = compare(answers([1, 0, 2], tied), answers([1, 1, 0], other))
    assert finding.passed and finding.tokens_equal == finding.tokens == 1 and "a tie" in finding.note


def test_another_token_without_a_tie_fails():
    other = [STEPS[0], [1.0, 5.0, 0.0], STEPS[2]]
    finding = compare(answers([1, 0, 2], STEPS), answers([1, 1, 2], other))
    assert not finding.passed and (finding.tokens_equal, finding.tokens) == (1, 3)
    assert "token 2: 1 instead of 0" in finding.note


def test_another_logit_of_the_same_token_fails():
    other = [STEPS[0], [5.0, 0.0, 1.01], STEPS[2]]
    finding = compare(answers([1, 0, 2], STEPS), answers([1, 0, 2], other))
    assert not finding.passed and finding.tokens_equal == 3
    assert finding.largest_logit_difference == pytest.approx(0.01 / np.std(STEPS[1]), rel=1e-3)


def test_other_vocabularies_fail():
    finding = compare(answers([1], [[0.0, 1.0]]), answers([1], [[0.0, 1.0, 0.0]]))
    assert not finding.passed and "(1, 3)" in finding.note
