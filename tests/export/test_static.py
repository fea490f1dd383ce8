"""Static programs of every family generate the tokens of PaddleNLP's networks; unsupported ones are refused."""

from __future__ import annotations

import errno
import json
import resource
from dataclasses import replace

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.generation.options import DecodeOptions
from paddle_llm.models.prompt import Prompt
from tests.export.static_folders import export_static
from tests.helpers.models.folders import VOCABULARY, write_folder
from tests.helpers.models.networks import build

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}
# name -> (family, overrides of config.json)
NETWORKS = {
    "llama, grouped queries, a tied head": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama 3.1's angles": ("llama", {"rope_scaling": _LLAMA3, "num_hidden_layers": 2}),
    "linear positions": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "num_hidden_layers": 2}),
    "dynamic positions": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "num_hidden_layers": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2, "num_hidden_layers": 2}),
    "mistral": ("mistral", {"sliding_window": 64, "num_hidden_layers": 2}),
    "chatglm2": ("chatglm_v2", {}),
    "bloom": ("bloom", {"n_layer": 2}),
    "bloom, 6 heads, normed residuals": (
        "bloom",
        {"n_head": 6, "hidden_size": 48, "n_layer": 2, "apply_residual_connection_post_layernorm": True},
    ),
    "opt": ("opt", {"init_std": 0.3}),
    "opt, narrow embedding, norms behind": (
        "opt",
        {"init_std": 0.3, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
    ),
    "chatglm-6b": ("chatglm", {}),
    "glm": ("glm", {}),
}


def prompts(family: str, lengths: tuple[int, ...]) -> list[Prompt]:
    rows = [np.random.default_rng([length, row]).integers(10, 390, length) for row, length in enumerate(lengths)]
    return [Prompt(ids.tolist(), len(ids) - 1 if family in ("chatglm", "glm") else 0) for ids in rows]


def opened(family: str, overrides: dict, pieces, tmp_path):
    """Return a network and the static export of its folder."""
    from paddle_llm.generation.static_network import StaticModel

    folder = write_folder(family, pieces, tmp_path / "model", **overrides)
    model = build(folder, load=True)
    model.eval()
    return model, StaticModel(export_static(folder, tmp_path / "program"))


def decoded(network, family: str, prompts: list[Prompt], new_tokens: int, batch: int) -> list[list[int]]:
    from paddle_llm.generation.decoding.decode import decode

    texts: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        texts += decode(network, part, [new_tokens] * len(part), DecodeOptions(family))
    return texts


def logits_behind(network, family: str, asked: list[Prompt], tokens_NB) -> np.ndarray:
    """Return the logits [N + 1, B, V] after the prompts and after each given token; the last two rows are swapped halfway."""
    import paddle

    from paddle_llm.generation.decoding.step import open_batch

    with paddle.no_grad():
        batch = open_batch(network, asked, len(tokens_NB) + 1, DecodeOptions(family))
        found = [batch.read_prompts().numpy()]
        for step, tokens_B in enumerate(tokens_NB):
            if step == len(tokens_NB) // 2:
                batch.keep_rows(paddle.to_tensor([0, 2, 1]))
            found.append(batch.read(paddle.to_tensor(tokens_B)).numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_and_tokens_of_the_network(name, pieces, tmp_path):
    family, overrides = NETWORKS[name]
    model, static = opened(family, overrides, pieces, tmp_path)
    asked = prompts(family, (5, 17, 9))
    tokens_NB = np.random.default_rng(0).integers(10, 390, (6, 3))
    ours, theirs = (logits_behind(network, family, asked, tokens_NB) for network in (model, static))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5 * np.abs(ours).max())
    assert np.abs(ours[1:] - ours[:-1]).max(axis=(1, 2)).min() > 0.1 * np.abs(ours).max()  # tokens make a difference
    assert decoded(static, family, asked, 12, 3) == decoded(model, family, asked, 12, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("chatglm_v2", {}),
        ("bloom", {}),
    ],
    ids=["llama", "llama tied", "chatglm2", "bloom"],
)
def test_all_greedy_tokens_of_fifty_prompts(family, overrides, pieces, tmp_path):
    """Texts may differ only where the network's logits of the two tokens are equal up to rounding."""
    model, static = opened(family, overrides, pieces, tmp_path)
    asked = prompts(family, tuple(3 + number % 47 for number in range(50)))
    ours, theirs = (decoded(network, family, asked, 64, 8) for network in (model, static))
    assert sum(map(len, ours)) == 50 * 64 and len({token for text in ours for token in text}) > 50
    parted = [number for number in range(50) if ours[number] != theirs[number]]
    for number in parted:
        place = next(n for n, pair in enumerate(zip(ours[number], theirs[number], strict=True)) if len(set(pair)) == 2)
        before = replace(asked[number], ids=[*asked[number].ids, *ours[number][:place]])
        logits_V = logits_behind(model, family, [before], [])[0, 0]
        gap = logits_V[ours[number][place]] - logits_V[theirs[number][place]]
        assert abs(gap) < 1e-5 * np.abs(logits_V).max(), (number, place, gap)
    assert len(parted) <= 1


def test_16_bits_are_widened(pieces, tmp_path):
    """The program of a bfloat16 model equals that of the same weights in fp32."""
    from safetensors.numpy import load_file, save_file

    from paddle_llm.models.weights.files import write_safetensors

    folder = write_folder("llama", pieces, tmp_path / "model", num_hidden_layers=1)
    file = folder / "model.safetensors"
    bits = {name: (tensor.view(np.uint32) >> 16).astype(np.uint16) for name, tensor in load_file(file).items()}
    save_file({name: (values.astype(np.uint32) << 16).view(np.float32) for name, values in bits.items()}, file)
    wide = export_static(folder, tmp_path / "wide")
    write_safetensors(file, bits)
    narrow = export_static(folder, tmp_path / "narrow")
    assert (wide / "model.pdiparams").read_bytes() == (narrow / "model.pdiparams").read_bytes()
    assert json.loads((narrow / "step.json").read_text())["dtype"] == "float32"


def test_the_files_of_the_folder(llama_program):
    names = {file.name for file in llama_program.iterdir()}
    assert {"model.json", "model.pdiparams", "step.json", "config.json", "tokenizer_config.json"} <= names
    assert "sentencepiece.bpe.model" in names and not any(name.endswith(".safetensors") for name in names)
    step = json.loads((llama_program / "step.json").read_text())
    assert (step["family"], step["vocab_size"], step["layers"]) == ("llama", 401, 2) and step["end_ids"] == [2]


@pytest.fixture(scope="module")
def llama_program(pieces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return export_static(write_folder("llama", pieces, folder / "llama", num_hidden_layers=2), folder / "program")


def test_a_disk_that_fills_is_reported(pieces, tmp_path):
    """Paddle writes until the disk is full, without an error: here the embedding and nothing after it."""
    source = write_folder("llama", pieces, tmp_path / "model", num_hidden_layers=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * VOCABULARY * 64 + 27, hard))
    try:
        with pytest.raises(OSError) as printed:
            export_static(source, tmp_path / "program")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert printed.value.errno == errno.EFBIG


def test_a_template_from_a_file_goes_with_the_program(pieces, tmp_path):
    """To another machine, where the file of the training is not; another --tokenizer does not take it away."""
    from click.testing import CliRunner

    from paddle_llm.cli.generate import generate

    run, theirs = tmp_path / "run", tmp_path / "training" / "mine.jinja"
    folder = write_folder("llama", pieces, run / "model", num_hidden_layers=1)
    (folder / "chat_template.jinja").write_text("{{ 'of the tokenizer' }}")
    theirs.parent.mkdir()
    theirs.write_text("{% for message in messages %}<<{{ message['content'] }}>>{% endfor %}")
    (run / "config.resolved.json").write_text(json.dumps({"arguments": {"chat_template": {"value": str(theirs)}}}))
    program = export_static(folder, tmp_path / "program").rename(tmp_path / "moved")
    theirs.unlink()
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"src": "Who?", "tgt": "I."}))
    for more in ([], ["--tokenizer", str(folder)]):
        words = [str(program), "--static", "--input", str(asked), "--max_new_tokens", "2", *more]
        result = CliRunner().invoke(generate, words, catch_exceptions=False)
        assert "<<Who?>>" in json.loads(result.stdout)["prompt"], result.stderr
        assert "as in the model's training" in result.stderr
    assert str(theirs) not in (program / "step.json").read_text()


def test_a_template_that_is_gone_is_reported(pieces, tmp_path, capsys):
    folder = write_folder("llama", pieces, tmp_path / "run" / "model", num_hidden_layers=1)
    record = {"arguments": {"chat_template": {"value": "/gone/mine.jinja"}}}
    (tmp_path / "run" / "config.resolved.json").write_text(json.dumps(record))
    export_static(folder, tmp_path / "program")
    assert "training used /gone/mine.jinja, which does not exist" in capsys.readouterr().err


def test_unsupported_programs_are_refused(pieces, tmp_path):
    from paddle_llm.export.options import Options
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.static.target import write_static

    folder = write_folder("bloom", pieces, tmp_path / "bloom", n_layer=1)
    staged = tmp_path / "staged"
    staged.mkdir()
    with pytest.raises(UserError, match="runs on the CPU, where Paddle's kernels are fp32"):
        write_static(open_source(folder), staged, Options(dtype="bfloat16"))
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="Give the folder of the tokenizer"):
        write_static(open_source(folder), staged, Options())
    assert not any(staged.iterdir())


def test_a_window_limits_the_length_of_a_text(pieces, tmp_path):
    """The program attends to all positions, so it has no more of them than the window; `generate` refuses longer texts."""
    from paddle_llm.families.positions import position_limit

    model, static = opened("mistral", {"sliding_window": 12}, pieces, tmp_path)
    assert position_limit(static.config) == 12
    assert position_limit(model.config) == 128, "the network itself computes texts that are longer than the window"
    asked = prompts("mistral", (5, 7))
    assert decoded(static, "mistral", asked, 5, 2) == decoded(model, "mistral", asked, 5, 2)
