"""Every known way in which an export loads without an error and generates garbage: a good folder is damaged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from paddle_llm.export.options import Options
from paddle_llm.export.verification.contract import lint
from paddle_llm.models.weights.names import hugging_face
from tests.export.folders import write_native
from tests.export.static_folders import export_static

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(llama, tmp_path_factory) -> Path:
    """A good export for FastDeploy, in several shards."""
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.fastdeploy import write_fastdeploy

    out = tmp_path_factory.mktemp("good") / "sharded"
    out.mkdir()
    write_fastdeploy(open_source(llama), out, Options(max_shard_size=200_000))
    return out


@pytest.fixture
def good(sharded, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sharded, tmp_path / "good"))


def change_json(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes a key."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict], dict], metadata: dict | None = None) -> None:
    """Rewrite every weight file and the index."""
    where, total = {}, 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = change(load_file(file))
        save_file({n: np.ascontiguousarray(v) for n, v in tensors.items()}, file, metadata=metadata or {"format": "pt"})
        where |= dict.fromkeys(tensors, file.name)
        total += sum(value.nbytes for value in tensors.values())
    change_json(folder / INDEX, weight_map=where, metadata={"total_size": total})


def only_problem(folder: Path, target: str = "fastdeploy") -> str:
    problems = lint(folder, target)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_good_folder_has_no_problems(good):
    assert len(list(good.glob("model-*.safetensors"))) == 3
    assert lint(good, "fastdeploy") == [] == lint(good, "hf")


@pytest.mark.parametrize("family", ["llama", "qwen2", "chatglm", "chatglm_v2", "bloom", "opt", "glm", "mistral"])
def test_the_folders_of_all_families_are_good(family, tmp_path):
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.hugging_face import write_hf

    write_native(tmp_path / "model", family, "bfloat16")
    (tmp_path / "out").mkdir()
    write_hf(open_source(tmp_path / "model"), tmp_path / "out", Options())
    assert lint(tmp_path / "out", "hf") == []


def test_values_are_not_read(good):
    """Only the headers of weight files are read, so that a huge model is checked fast."""
    for file in good.glob("*.safetensors"):
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        size = file.stat().st_size
        with file.open("r+b") as stream:
            stream.truncate(header)
            stream.truncate(size)  # a hole
    assert lint(good, "fastdeploy") == []


# ---- config.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": []}, "has no architectures.*Add it"),
        ({"dtype": "float32"}, "both torch_dtype and dtype.*Remove dtype"),
        ({"torch_dtype": None}, "neither torch_dtype nor dtype.*Add torch_dtype"),
        ({"torch_dtype": None, "dtype": "float32"}, "means .in, out. matrices.*Rename it to torch_dtype"),
        ({"torch_dtype": "fp32"}, "torch_dtype='fp32'. Use one of"),
        ({"torch_dtype": "bfloat16"}, "has bfloat16, but .* stored as float32. Set torch_dtype"),
        ({"eos_token_id": 401}, "eos_token_id 401 is outside the vocabulary of 401 tokens"),
        ({"hidden_size": None}, "does not have hidden_size"),
        ({"model_type": "mamba"}, "model_type = 'mamba' is not supported"),
    ],
)
def test_config(good, changes, message):
    change_json(good / "config.json", **changes)
    assert re.search(message, only_problem(good)), lint(good, "fastdeploy")


def test_an_invalid_config_is_reported(good):
    (good / "config.json").write_text("{")
    assert "config.json cannot be read" in only_problem(good)
    (good / "config.json").unlink()
    assert "config.json is missing" in only_problem(good)


def test_another_depth_and_width(good):
    change_json(good / "config.json", num_hidden_layers=3)
    assert "model.layers.2.input_layernorm.weight" in only_problem(good) and "missing" in only_problem(good)
    change_json(good / "config.json", num_hidden_layers=1)
    assert "not a weight of llama, and silently skipped" in only_problem(good)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_the_prefix_llama_is_kept(good):
    change_tensors(good, lambda tensors: {name.replace("model.", "llama."): value for name, value in tensors.items()})
    problems = lint(good, "fastdeploy")
    assert any("a PaddleNLP name; Hugging Face's begins with 'model.'" in one and "random" in one for one in problems)
    assert any("missing: the network would use random values" in one for one in problems)


def test_weights_are_not_transposed(good):
    change_tensors(
        good, lambda tensors: {n: v.T if v.ndim == 2 and "embed" not in n else v for n, v in tensors.items()}
    )
    problem = only_problem(good)
    assert (
        "stored in Paddle's layout [in, out] instead of [out, in]" in problem
        and "self_attn.k_proj.weight" in problem
        and "Export again" in problem
    )


def test_untransposed_square_matrices_are_detected_by_the_metadata(good):
    """Their shape is the same in both layouts, but only torch's writers set the format "pt"."""
    change_tensors(good, lambda tensors: tensors, metadata={"format": "np"})
    problems = lint(good, "fastdeploy")
    assert len(problems) == len(list(good.glob("*.safetensors")))
    assert all('"format": \'np\' instead of "pt", so square matrices may have Paddle' in one for one in problems)


def test_a_missing_tensor(good):
    change_tensors(good, lambda tensors: {n: v for n, v in tensors.items() if n != "model.layers.1.mlp.up_proj.weight"})
    problem = only_problem(good)
    assert problem.startswith("model.layers.1.mlp.up_proj.weight missing") and "Export again" in problem


def test_a_wrong_shape(good):
    def cut(tensors):
        return {n: v[:-1] if n == "model.embed_tokens.weight" else v for n, v in tensors.items()}

    change_tensors(good, cut)
    problem = only_problem(good)
    assert "model.embed_tokens.weight has the shape [400, 64], but config.json requires [401, 64]" in problem


def test_another_type(good):
    change_tensors(good, lambda tensors: {n: v.astype(np.float16) if "norm" in n else v for n, v in tensors.items()})
    assert "config.json has float32, but model.layers.0.input_layernorm.weight" in only_problem(good)
    assert lint(good, "hf") == []  # transformers makes one type of them
    change_tensors(good, lambda tensors: {n: v.astype(np.float64) for n, v in tensors.items()})
    assert "only float32, bfloat16 and float16 are read" in only_problem(good)


def test_a_tied_head_with_separate_weights_is_reported(good):
    change_json(good / "config.json", tie_word_embeddings=True)
    problem = only_problem(good)
    assert "lm_head.weight is stored although the head is tied" in problem and "Remove it" in problem


def test_an_unknown_tensor(good):
    change_tensors(
        good,
        lambda tensors: {
            **tensors,
            **({"model.extra": np.zeros(3, np.float32)} if "lm_head.weight" in tensors else {}),
        },
    )
    assert only_problem(good).startswith("model.extra: not a weight of llama")


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "target", "message"), [
    ("model_state.pdparams", "fastdeploy", "FastDeploy reads it instead of the safetensors. Remove it"),
    ("model_state.pdparams", "hf", "PaddleNLP may read it"),
    ("sentencepiece.bpe.model", "fastdeploy", "silently read as a tokenizer of 3 tokens. Remove it"),
])  # fmt: skip
def test_a_left_over_file_is_reported(good, name, target, message):
    (good / name).write_bytes(b"x")
    assert message in only_problem(good, target) and name in only_problem(good, target)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_shards_with_other_names_are_reported(good):
    index = json.loads((good / INDEX).read_text())
    for file in shards(good):
        file.rename(good / file.name.replace("model-", "model_"))
    index["weight_map"] = {name: file.replace("model-", "model_") for name, file in index["weight_map"].items()}
    (good / INDEX).write_text(json.dumps(index))
    assert "FastDeploy finds only shards named model-0000i-of-0000N.safetensors" in only_problem(good)


def test_a_missing_shard_is_reported(good):
    gone = shards(good)[1]
    gone.unlink()
    problems = lint(good, "fastdeploy")
    assert any(f"missing shards: {gone.name} (1 of " in one for one in problems)
    assert any("which does not contain it" in one for one in problems)


def test_shards_of_another_export(good):
    shutil.copyfile(shards(good)[0], good / "model-00001-of-00002.safetensors")
    problems = lint(good, "fastdeploy")
    assert any("the shards belong to exports of 2 and" in one for one in problems)
    assert any("both contain" in one and "Remove the file that belongs to another export" in one for one in problems)


def test_no_weights(good):
    for file in shards(good):
        file.unlink()
    assert "no weights" in only_problem(good)


def test_a_truncated_shard_is_reported(good):
    shards(good)[0].write_bytes(b"abc")
    assert any("not a safetensors file, or is cut off" in one for one in lint(good, "fastdeploy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda index: index["weight_map"].pop("lm_head.weight"),
            f"{INDEX} does not list lm_head.weight of a shard",
        ),
        (
            lambda index: index["weight_map"].update({"model.no": "model-1"}),
            "lists model.no in model-1, which does not",
        ),
        (lambda index: index["metadata"].update(total_size=3), "has total_size 3, but the tensors have"),
        (lambda index: index.pop("metadata"), "cannot be read: KeyError('metadata')"),
    ],
)
def test_the_index_and_the_files_disagree(good, change, message):
    index = json.loads((good / INDEX).read_text())
    change(index)
    (good / INDEX).write_text(json.dumps(index))
    assert message in only_problem(good)


def test_the_index_names_another_shard(good):
    index = json.loads((good / INDEX).read_text())
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"]["lm_head.weight"])
    held = index["weight_map"]["lm_head.weight"]
    index["weight_map"]["lm_head.weight"] = other
    (good / INDEX).write_text(json.dumps(index))
    assert f"lists lm_head.weight in {other}, but it is in {held}" in only_problem(good)
    (good / INDEX).unlink()
    assert f"{INDEX} is missing" in only_problem(good)


def test_one_file_beside_shards(good):
    save_file({"a": np.zeros(1, np.float32)}, good / "model.safetensors", metadata={"format": "pt"})
    assert any(
        f"both model.safetensors and {INDEX} exist, and the former takes precedence" in one
        for one in lint(good, "fastdeploy")
    )
    (good / INDEX).unlink()
    assert any("are never read. Remove them" in one for one in lint(good, "fastdeploy"))


# ---- tokenizer and what a server reads ------------------------------------------------------------------------------


def test_no_tokenizer(good):
    (good / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in only_problem(good) and "silently load almost no tokens" in only_problem(good)
    (good / "tokenizer_config.json").unlink()
    assert "which FastDeploy needs" in only_problem(good) and lint(good, "hf") == []


def test_a_tokenizer_of_three_tokens(good):
    content = json.loads((good / "tokenizer.json").read_text())
    content["model"] |= {"vocab": content["model"]["vocab"][:3]}
    content |= {"added_tokens": content["added_tokens"][:3], "post_processor": None}
    (good / "tokenizer.json").write_text(json.dumps(content))
    change_json(good / "tokenizer_config.json", pad_token=None)
    assert "the tokenizer has only 3 tokens, but the model has a vocabulary of 401: it is incomplete" in only_problem(
        good
    )
    (good / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in only_problem(good)


def test_a_tokenizer_of_another_model(good):
    content = json.loads((good / "tokenizer.json").read_text())
    content["model"]["vocab"] += [[f"word{i}", -1.0] for i in range(5)]
    (good / "tokenizer.json").write_text(json.dumps(content))
    assert "the tokenizer has ids up to 404, but the model has a vocabulary of 401" in only_problem(good)


def test_a_special_token_that_the_vocabulary_lacks(good):
    change_json(good / "tokenizer_config.json", pad_token="[PAD]")
    assert "pad_token '[PAD]' is not in tokenizer.json" in only_problem(good)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "the chat template does not render"),
        ("{{ raise_exception('no') }}", "the chat template does not render"),
        ("hello", "the chat template drops the user's message"),
        ([{"name": "rag", "template": "x"}], "chat_template is empty"),
    ],
)
def test_a_broken_chat_template_is_reported(good, template, message):
    change_json(good / "tokenizer_config.json", chat_template=template)
    assert message in only_problem(good)


def test_ids_that_end_a_text(good):
    change_json(good / "generation_config.json", eos_token_id=[2, 500])
    assert "generation_config.json: eos_token_id 500 is outside the vocabulary of 401 tokens" in only_problem(good)


def test_an_export_for_somebody_else(good):
    (good / "export.json").write_text(json.dumps({"target": "hf"}))
    assert "export.json names the target hf, not fastdeploy" in only_problem(good)


# ---- static ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(llama, tmp_path_factory) -> Path:
    return export_static(llama, tmp_path_factory.mktemp("static") / "out")


def test_static(program, tmp_path):
    assert lint(program, "static") == []
    folder = Path(shutil.copytree(program, tmp_path / "out"))
    change_json(folder / "step.json", layers=3, end_ids=[2, 401])
    layers, ends = lint(folder, "static")
    assert "step.json has layers=3, config.json 2: the program belongs to another network" in layers
    assert "end_ids[1] 401 is outside the vocabulary" in ends
    change_json(folder / "step.json", layers=2, end_ids=[2], dtype="bfloat16")
    assert "computes in float32" in only_problem(folder, "static")
    change_json(folder / "step.json", dtype="float32")
    (folder / "model.pdiparams").write_bytes(b"0" * 100)
    assert "model.pdiparams is smaller than the embedding: it is truncated" in only_problem(folder, "static")
    (folder / "model.pdiparams").unlink()
    assert only_problem(folder, "static").startswith("model.pdiparams missing")


def test_the_names_that_are_expected_are_those_of_the_one_mapping(sharded):
    """The contract check relies on it: the names of a good folder are those of names.py."""
    held = {name for file in sharded.glob("*.safetensors") for name, _ in deserialize(file.read_bytes())}
    assert hugging_face("llama", "llama.layers.0.self_attn.q_proj.weight", 2).name in held
