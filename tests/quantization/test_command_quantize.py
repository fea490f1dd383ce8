"""`paddle-llm quantize`: the folder, its use by other commands, resuming, and refused options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paddle_llm.cli.generate import generate
from paddle_llm.cli.quantize import quantize_command
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.models.weights.files import WeightFiles
from tests.helpers.models.folders import train_pieces, write_folder
from tests.helpers.models.networks import WRITERS, build

# Sizes that fill whole words of 3 bits.
SIZES = {
    "llama": {"intermediate_size": 96, "num_hidden_layers": 3},
    "qwen2": {"intermediate_size": 96, "num_hidden_layers": 2},
    "mistral": {"intermediate_size": 96, "num_hidden_layers": 2},
}
TEXT = "The class statement defines a name. An object has a type, and a module has a list of names.\n" * 12


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory, pieces) -> Path:
    return write_folder("llama", pieces, tmp_path_factory.mktemp("models") / "llama", **SIZES["llama"])


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text(TEXT)
    return file


def run(command, *words) -> tuple[str, str]:
    result = CliRunner().invoke(command, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def quantize(model, out, *words) -> tuple[str, str]:
    return run(quantize_command, model, out, *words)


def refused(*words) -> str:
    with pytest.raises(UserError) as refusal:
        quantize(*words)
    return str(refusal.value)


def calibrated(text) -> tuple:
    return ("--calibration", text, "--calibration_samples", 8, "--calibration_length", 24)


def logits(folder: Path, text: Path) -> np.ndarray:
    """Return the logits of the text's first windows of 24 tokens."""
    import paddle

    model = build(folder, load=True)
    model.eval()
    ids = open_codec(str(folder)).encode(text.read_text())[: 8 * 24]
    with paddle.no_grad():
        found = model(input_ids=paddle.to_tensor(np.array(ids).reshape(8, 24)))
    return (found[0] if isinstance(found, tuple) else found).numpy()


def stored(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("bits", [8, 4])
def test_every_family_is_quantized_and_read(family, bits, pieces, text, tmp_path):
    model = write_folder(family, pieces, tmp_path / "model", **SIZES.get(family, {}))
    out, printed = quantize(model, tmp_path / "out", "--bits", bits, "--group_size", 32, *calibrated(text))
    assert "relative error" in printed and f"gptq, {bits} bits" in out
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["bits"] == bits and config["group_size"] == 32 and config["desc_act"] is False
    full, packed = WeightFiles(model), WeightFiles(tmp_path / "out")
    assert sorted(full.names()) == sorted(packed.names())
    for name in full.names():
        wanted, found = full.view(name), packed.view(name)
        if name in packed.packed_names():
            assert 0 < np.abs(wanted - found).max() < np.abs(wanted).max() * (0.1 if bits == 8 else 0.6)
        else:
            np.testing.assert_array_equal(wanted, found)
    _, printed = run(generate, tmp_path / "out", "--prompt", "An object", "--max_new_tokens", 3, "--device", "cpu")
    assert f"quantized (GPTQ, {bits} bits, groups of 32) and dequantized while it is read" in printed


@pytest.mark.parametrize(
    "words", [("--bits", 3, "--act_order"), ("--bits", 4, "--group_size", -1), ("--bits", 3, "--asymmetric")]
)
def test_gptq_loses_less_than_rounding(llama, text, tmp_path, words):
    size = () if "--group_size" in words else ("--group_size", 32)
    quantize(llama, tmp_path / "gptq", *words, *size, *calibrated(text))
    rounding = [word for word in words if word != "--act_order"]
    quantize(llama, tmp_path / "rtn", "--method", "rtn", *rounding, *size)
    errors = {}
    for name in ("gptq", "rtn"):
        full, packed = WeightFiles(llama), WeightFiles(tmp_path / name)
        errors[name] = sum(float(np.square(full.view(one) - packed.view(one)).sum()) for one in packed.packed_names())
        assert json.loads((tmp_path / name / "export.json").read_text())["method"] == name
    assert errors["rtn"] < errors["gptq"]  # rounding is best for the weights ...
    whole = logits(llama, text)
    distances = {name: float(np.square(logits(tmp_path / name, text) - whole).mean()) for name in errors}
    assert distances["gptq"] < 0.9 * distances["rtn"]  # ... and GPTQ for the outputs


def test_an_interrupted_run_continues_with_the_same_result(llama, text, tmp_path, monkeypatch):
    from paddle_llm.export.quantized import api

    words = ("--group_size", 32, "--act_order", *calibrated(text))
    quantize(llama, tmp_path / "whole", *words)

    def interrupt(index: int, *_: object) -> None:
        if index == 1:
            raise KeyboardInterrupt

    settings = api.QuantizeOptions(group_size=32, act_order=True, calibration=(text,), samples=8, length=24)
    with pytest.raises(KeyboardInterrupt):
        api.quantize(llama, tmp_path / "out", settings, on_layer=interrupt)
    partial = tmp_path / "out.quantizing"
    assert not (tmp_path / "out").exists() and sorted(file.name for file in partial.glob("layer*")) == [
        "layer-00000.safetensors",
        "layer-00001.safetensors",
    ]
    assert "with another bits: 4 instead of 8" in refused(llama, tmp_path / "out", "--bits", 8, *words)
    _, printed = quantize(llama, tmp_path / "out", *words)
    assert "continuing an interrupted run: 2 layers" in printed
    assert "layer 3 of 3" in printed and "layer 2 of 3" not in printed
    assert stored(tmp_path / "out") == stored(tmp_path / "whole") and not partial.exists()


def test_rows_of_instructions_calibrate_with_the_template(llama, tmp_path):
    rows = [{"instruction": f"What is a class number {number}?", "output": TEXT[:200]} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, printed = quantize(llama, tmp_path / "out", "--group_size", 32, *calibrated(tmp_path / "rows.jsonl"))
    assert "prompt template: " in printed and "calibration: 8 samples of 24 tokens" in printed


def test_the_other_weights_may_get_another_type(llama, tmp_path):
    quantize(llama, tmp_path / "out", "--method", "rtn", "--group_size", 32, "--dtype", "float16")
    files = WeightFiles(tmp_path / "out")
    assert {files.dtype(name) for name in files.names() if name not in files.packed_names()} == {"float16"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == "float16"


def test_mistakes_are_refused(llama, text, pieces, tmp_path):
    out = tmp_path / "out"
    assert "needs --calibration FILE" in refused(llama, out)
    assert "--calibration applies to --method gptq" in refused(llama, out, "--method", "rtn", "--calibration", text)
    assert "--act_order applies" in refused(llama, out, "--method", "rtn", "--act_order")
    assert "is too small" in refused(llama, out, "--method", "rtn", "--group_size", 4)
    assert "exceeds the model's" in refused(llama, out, *calibrated(text)[:-1], 100_000)
    (tmp_path / "short.txt").write_text("a")
    assert "fewer than --calibration_length 24" in refused(llama, out, *calibrated(tmp_path / "short.txt"))
    assert "is not a folder" in refused(tmp_path / "none", out, "--method", "rtn")
    odd = write_folder("llama", pieces, tmp_path / "odd", intermediate_size=72, num_hidden_layers=1)
    assert "has 64 inputs and 72 outputs, and --bits 3 needs multiples of 32" in refused(
        odd, out, "--method", "rtn", "--bits", 3
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["odd", "short.txt"]
    quantize(llama, out, "--method", "rtn", "--group_size", 32)
    assert "is quantized already" in refused(out, tmp_path / "again", "--method", "rtn")
    assert "already exists" in refused(llama, out, "--method", "rtn", "--group_size", 32)
    quantize(llama, out, "--method", "rtn", "--group_size", 16, "--overwrite")
