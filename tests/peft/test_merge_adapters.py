"""Several LoRA adapters merged into one: the weighted sum of their changes, compared with peft on torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.peft.merge_products import Product, concatenate, narrow, truncate
from paddle_llm.peft.method import Method
from tests.export.test_merged import base_folder, network_of, trained_adapter
from tests.helpers.models.adapters import METHODS, logits
from tests.peft import peft_library

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# ---- the products ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ranks=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    rank=st.integers(1, 12),
)
def test_products_add_up_and_are_truncated_as_by_an_svd_of_the_sum(seed, sizes, ranks, rank):
    numbers = np.random.default_rng(seed)
    terms = [
        Product(
            numbers.standard_normal((sizes[0], r)).astype(np.float32),
            numbers.standard_normal((r, sizes[1])).astype(np.float32),
            float(numbers.normal()),
        )
        for r in ranks
    ]
    full = sum(term.factor * term.a.astype(np.float64) @ term.b.astype(np.float64) for term in terms)
    a, b = concatenate(terms)
    assert a.shape[1] == b.shape[0] == sum(ranks)
    np.testing.assert_allclose(a.astype(np.float64) @ b, full, atol=1e-5)
    if rank < sum(ranks):
        a, b, error = truncate(a, b, rank)
        u, values, v = np.linalg.svd(full)
        best = (u[:, :rank][:, : len(values)] * values[:rank]) @ v[: min(rank, len(values))]
        np.testing.assert_allclose(a.astype(np.float64) @ b, best, atol=1e-4)
        assert error == pytest.approx(np.linalg.norm(values[rank:]) / np.linalg.norm(values), abs=1e-5)


def test_products_of_zeros_are_truncated_without_an_error():
    a, b, error = truncate(np.zeros((5, 4), np.float32), np.ones((4, 3), np.float32), 2)
    assert error == 0 and not (a @ b).any() and np.isfinite(a).all() and np.isfinite(b).all()


def test_narrowing_changes_no_value():
    values = np.array([[1.5, -0.25, 0.0]], np.float32)
    assert np.array_equal(narrow(values, "bfloat16").astype(np.uint32) << 16, values.view(np.uint32))
    assert np.array_equal(narrow(values, "float16"), values)
    assert narrow(np.array([1 + 2**-9], np.float32), "bfloat16") is None
    assert narrow(np.array([1e5], np.float32), "float16") is None  # infinite in float16


# ---- compared with peft ---------------------------------------------------------------------------------------------

# Sums that peft 0.17 cannot merge: it looks for LoRA in every block, and for rsLoRA it keeps use_rslora of the first
# adapter but not the scaling.
NOT_IN_PEFT = ("other ranks, alphas and layers", "rslora and plain")
# Name -> settings of each adapter in peft, weights
SUMS: dict[str, tuple[list[dict[str, Any]], list[float]]] = {
    "equal ranks": (
        [{"r": 4, "target_modules": ["q_proj", "v_proj"]}, {"r": 4, "target_modules": ["q_proj", "v_proj"]}],
        [0.7, 0.3],
    ),
    "other ranks, alphas and layers": (
        [
            {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 6}},
            {
                "r": 2,
                "lora_alpha": 16,
                "target_modules": ["v_proj", "q_proj"],
                "alpha_pattern": {r".*\.1\.self_attn\.q_proj": 3},
                "layers_to_transform": [1, 3],
            },
            {"r": 1, "target_modules": ["up_proj"]},
        ],
        [1.5, -0.4, 0.25],
    ),
    "other ranks in the same blocks": (
        [
            {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 6}},
            {"r": 2, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"], "alpha_pattern": {"q_proj": 3}},
        ],
        [1.5, -0.4],
    ),
    "embedding and head": (
        [
            {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
            {"r": 2, "target_modules": ["lm_head", "embed_tokens"]},
        ],
        [0.5, 1.0],
    ),
    "rslora and plain": (
        [{"r": 4, "use_rslora": True, "target_modules": ["q_proj"]}, {"r": 3, "target_modules": ["q_proj", "o_proj"]}],
        [0.6, 0.4],
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return base_folder(tmp_path_factory.mktemp("llama") / "base", "llama", num_key_value_heads=2)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))


def ours_over(base: Path, adapter: Path) -> np.ndarray:
    import paddle

    from paddle_llm.peft.save import load_adapter

    model = load_adapter(network_of(base, "float32"), adapter, Layout())
    model.eval()
    return logits(model, inputs={"input_ids": paddle.to_tensor(peft_library.TOKENS)})


def summed_by_torch(base: Path, adapters: list[Path], weights: list[float]) -> np.ndarray:
    """Return the logits of the base with w_1 delta_1 + w_2 delta_2 + ... added to its weights; peft computes each delta."""
    import torch
    from peft.tuners.lora import LoraLayer

    model = peft_library.base_model(base)
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, layer in peft_library.loaded(base, adapter).named_modules():
            if isinstance(layer, LoraLayer):
                with torch.no_grad():
                    target = model.get_submodule(name.removeprefix("base_model.model.")).weight
                    target.add_(weight * layer.get_delta_weight("default"))
    return peft_library.logits(model)


def summed_by_peft(base: Path, adapters: list[Path], weights: list[float], **options: Any) -> np.ndarray:
    """Return the logits of peft's `add_weighted_adapter`."""
    from peft import PeftModel

    with peft_library.quiet():
        model = PeftModel.from_pretrained(peft_library.base_model(base), adapters[0], adapter_name="0")
        for number, adapter in enumerate(adapters[1:], 1):
            model.load_adapter(adapter, str(number))
        model.add_weighted_adapter([str(number) for number in range(len(adapters))], weights, "sum", **options)
        model.set_adapter("sum")
    return peft_library.logits(model.eval())


def command(*words: Any) -> Result:
    from paddle_llm.cli.main import paddle_llm

    return CliRunner().invoke(paddle_llm, ["merge", *map(str, words)], catch_exceptions=False)


def listed(weights: list[float]) -> str:
    return ",".join(map(str, weights))


@pytest.mark.hf
@pytest.mark.parametrize("case", SUMS)
def test_the_sum_computes_the_values_of_peft(case, base, tmp_path):
    from tests.helpers.convert import from_peft

    described, weights = SUMS[case]
    theirs = [tmp_path / f"theirs {number}" for number in range(len(described))]
    for number, (folder, one) in enumerate(zip(theirs, described, strict=True)):
        peft_library.write(base, folder, seed=number, **one)
    wanted = summed_by_torch(base, theirs, weights)
    if case not in NOT_IN_PEFT:
        close(summed_by_peft(base, theirs, weights, combination_type="cat"), wanted)
    done = command(*theirs, tmp_path / "sum", "--weights", listed(weights))
    assert "in the format of Hugging Face's PEFT" in done.stdout and str(base) in done.stdout
    close(peft_library.logits(peft_library.loaded(base, tmp_path / "sum")), wanted)
    close(ours_over(base, tmp_path / "sum"), wanted)
    from_peft(theirs[0], tmp_path / "ours 0")  # both formats in one sum
    mixed, factors = [*theirs[1:], tmp_path / "ours 0"], listed([*weights[1:], weights[0]])
    command(*mixed, tmp_path / "mixed", "--weights", factors, "--to", "paddle-llm")
    assert "method" in json.loads((tmp_path / "mixed" / CONFIG).read_text())
    close(ours_over(base, tmp_path / "mixed"), wanted)


@pytest.mark.hf
def test_a_smaller_rank_is_the_approximation_of_peft(base, tmp_path):
    adapters = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(adapters):
        rank = 4 + number  # equal to alpha, because peft 0.17 multiplies by the scaling twice
        peft_library.write(base, folder, seed=number, r=rank, lora_alpha=rank, target_modules=["q_proj", "down_proj"])
    wanted = summed_by_peft(base, adapters, [0.7, 0.3], combination_type="svd", svd_rank=3)
    done = command(*adapters, tmp_path / "sum", "--weights", "0.7,0.3", "--rank", 3)
    assert "rank 3, 8 layers" in done.stdout
    assert "reduced the rank of 8 layers: relative error of the sum" in done.stderr
    close(ours_over(base, tmp_path / "sum"), wanted)
    command(*adapters, tmp_path / "exact", "--weights", "0.7,0.3", "--rank", 9)
    close(ours_over(base, tmp_path / "exact"), summed_by_torch(base, adapters, [0.7, 0.3]))


# ---- in this library's format ---------------------------------------------------------------------------------------


def test_adalora_becomes_lora(base, tmp_path):
    adapter = trained_adapter(tmp_path / "ada", base, Method("adalora", rank=2, initial_rank=3, targets=("q_proj",)))
    tensors = load_file(adapter / TENSORS)
    first = next(name for name in tensors if name.endswith("lora_E"))
    tensors[first][1] = 0  # AdaLoRA took the rank away
    save_file(tensors, adapter / TENSORS)
    wanted = ours_over(base, adapter)
    done = command(adapter, tmp_path / "lora", "--to", "peft")
    assert "ranks 2 to 3, 4 layers" in done.stdout
    assert json.loads((tmp_path / "lora" / CONFIG).read_text())["peft_type"] == "LORA"
    close(ours_over(base, tmp_path / "lora"), wanted)


@pytest.mark.parametrize("weights, stored", [([1.0, 0.5], "bfloat16"), ([0.7, 0.3], "float32")])
def test_the_stored_type_is_kept_where_it_is_exact(weights, stored, tmp_path):
    from paddle_llm.models.weights.files import WeightFiles

    base = base_folder(tmp_path / "base", "llama", "bfloat16")
    one = trained_adapter(tmp_path / "one", base, METHODS["lora"], "bfloat16")
    other = trained_adapter(tmp_path / "other", base, Method("lora", rank=2, alpha=4.0), "bfloat16")
    done = command(one, other, tmp_path / "sum", "--weights", listed(weights))
    files, first = WeightFiles(tmp_path / "sum", file=TENSORS), WeightFiles(one, file=TENSORS)
    assert {files.dtype(name) for name in files.names()} == {stored}
    assert ("bfloat16 would round" in done.stderr) == (stored == "float32")
    assert set(files.names()) == set(first.names())
    name = next(name for name in files.names() if name.endswith("lora_B"))
    assert np.array_equal(files.read(name, 0, 0, 4), first.read(name, 0, 0, 4))


def test_trained_weights_of_the_base_are_kept_if_they_are_equal(base, tmp_path):
    settings = {"modules_to_save": ("norm", "lm_head"), "targets": ("q_proj",)}
    one = trained_adapter(tmp_path / "one", base, Method("lora", rank=2, **settings))
    other = tmp_path / "other"
    shutil.copytree(one, other)
    tensors = load_file(other / TENSORS)
    save_file({name: v if "lora" not in name else 2 * v for name, v in tensors.items()}, other / TENSORS)
    command(one, other, tmp_path / "sum", "--weights", "0.5,-1")
    found = load_file(tmp_path / "sum" / TENSORS)
    kept = [name for name in tensors if "lora" not in name]
    assert kept and all(np.array_equal(found[name], tensors[name]) for name in kept)
    ours_over(base, tmp_path / "sum")  # the files fit together
    save_file(tensors | {kept[0]: tensors[kept[0]] + 1}, other / TENSORS)
    refused(f"contain {kept[0]} of the base with different values", one, other, tmp_path / "again")
    plain = trained_adapter(tmp_path / "plain", base, Method("lora", rank=2, targets=("q_proj",)))
    refused(f"{one} contains .* of the base, {plain} does not", plain, one, tmp_path / "again")


def test_template_and_tokenizer_are_carried_over(base, tmp_path):
    one, other = (trained_adapter(tmp_path / name, base, METHODS["lora"]) for name in ("one", "other"))
    (one / "chat_template.jinja").write_text("{{ messages }}")
    (one / "training_chat_template.json").write_text('{"name": "x"}')
    (other / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    done = command(one, other, tmp_path / "sum")
    assert f"{other} has other chat_template.jinja, tokenizer_config.json, training_chat" in done.stderr
    assert f"the files of {one} are kept" in done.stderr
    assert (tmp_path / "sum" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "sum" / "training_chat_template.json").is_file()
    assert not (tmp_path / "sum" / "tokenizer_config.json").exists()
    done = command(other, one, tmp_path / "sum", "--overwrite")
    assert (tmp_path / "sum" / "tokenizer_config.json").is_file() and f"the files of {other} are kept" in done.stderr


def test_training_settings_that_differ_are_reported(base, tmp_path):
    one = trained_adapter(tmp_path / "one", base, Method("lora", rank=2, dropout=0.1, lora_plus_scale=4.0))
    other = trained_adapter(tmp_path / "other", base, Method("lora", rank=2, lora_plus_scale=4.0))
    done = command(one, other, tmp_path / "sum")
    assert "trained with dropout 0.1, 0.0; the result has 0.0" in done.stderr
    method = json.loads((tmp_path / "sum" / CONFIG).read_text())["method"]
    assert (method["dropout"], method["lora_plus_scale"], method["rank"], method["alpha"]) == (0.0, 4.0, 4, 4.0)


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(message: str, *words: Any) -> None:
    out = next(Path(word) for word in reversed(words) if isinstance(word, Path))
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError, match=message):
        command(*words)
    assert sorted(out.parent.rglob("*")) == before


def edit(folder: Path, **changes: Any) -> None:
    described = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(described | changes))


@pytest.fixture
def pair(base, tmp_path) -> tuple[Path, Path]:
    """Two small adapters of one base."""
    method = Method("lora", rank=2, targets=("q_proj",))
    return trained_adapter(tmp_path / "one", base, method), trained_adapter(tmp_path / "other", base, method)


@pytest.mark.parametrize(
    "weights, message",
    [
        ("0.7", "1 number for 2 adapters.*the last argument is OUT"),
        ("0.7,0.2,0.1", "3 numbers for 2 adapters"),
        ("0.7,x", "is not a list of numbers"),
        ("", "is not a list of numbers"),
        ("1,0", "0 is not a factor"),
        ("nan,1", "nan is not a factor"),
        ("1,inf", "inf is not a factor"),
        ("1e300,1", "make values infinite"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message, pair, tmp_path):
    refused(message, *pair, tmp_path / "sum", "--weights", weights)


def test_inputs_that_do_not_belong_together_are_refused(base, pair, tmp_path):
    one, other = pair
    out = tmp_path / "sum"
    refused("is given twice", one, one, out)
    refused("is or contains the input", one, other, tmp_path)
    refused("already exists and is not empty", one, other)  # OUT was forgotten
    edit(other, base="/elsewhere/llama")
    refused(r"one was trained on .*base, .*other on /elsewhere/llama.*--base", one, other, out)
    command(one, other, tmp_path / "named", "--base", base)  # the user states that it is one base
    edit(other, base="")
    refused("does not name its base model. Name it with --base", one, other, out)
    shape = json.loads((one / CONFIG).read_text())["model"]
    edit(other, base=str(base), model=shape | {"hidden_size": 999})
    refused("different bases: hidden_size .* and 999", one, other, out)
    edit(other, model=shape | {"family": "unknown"})
    refused("family or layers is invalid", one, other, out)
    small = base_folder(tmp_path / "small", "llama", num_hidden_layers=1)
    refused("--base .* does not fit .*one: layers is 1", one, out, "--base", small)


@pytest.mark.parametrize("name", ["prefix", "prompt", "adapter", "freeze", "dora"])
def test_methods_that_are_not_a_sum_are_refused(name, base, pair, tmp_path):
    method = Method("lora", rank=2, dora=True) if name == "dora" else METHODS[name]
    adapter = trained_adapter(tmp_path / "special", base, method)
    refused(
        "is a DoRA adapter.*paddle-llm export"
        if name == "dora"
        else f"trained by {method.name}, which is not a product",
        pair[0],
        adapter,
        tmp_path / "sum",
    )


def test_fused_and_separate_matrices_are_refused(base, pair, tmp_path):
    fused = trained_adapter(tmp_path / "fused", base, Method("lora", rank=2), fuse_attention_qkv=True)
    refused("fused has LoRA on the fused matrix .*qkv_proj, .*one on q_proj", pair[0], fused, tmp_path / "sum")
    refused("keeps separate", fused, tmp_path / "sum", "--to", "peft")


def test_damaged_files_are_refused(base, pair, tmp_path):
    one, other = pair
    out, tensors = tmp_path / "sum", load_file(other / TENSORS)
    a = next(name for name in tensors if name.endswith("lora_A"))
    b = a.replace("lora_A", "lora_B")

    def changed(message: str, **changes: np.ndarray | None) -> None:
        values = tensors | {a if key == "a" else b: value for key, value in changes.items()}
        save_file({name: value for name, value in values.items() if value is not None}, other / TENSORS)
        refused(message, one, other, out)

    changed("lora_B is missing", b=None)
    changed("has no lora_A", a=None)
    changed("contains NaN or infinity", a=np.full_like(tensors[a], np.nan))
    changed("gives rank 2", a=tensors[a][:, :1])
    changed("gives rank 2", a=tensors[a][:, 0])
    changed("stored as I32|stored as int32", a=tensors[a].astype(np.int32))
    changed(r"is \d+ x \d+ for .*one, but", a=tensors[a][:-1])
    save_file({"x": tensors[a]}, other / TENSORS)
    refused("contains no LoRA", one, other, out)
    save_file(tensors, other / TENSORS)
    method = json.loads((other / CONFIG).read_text())["method"]
    for wrong in ({"rank": "2"}, {"rank": 0}, {"alpha": "4"}, {"alpha": float("nan")}):
        edit(other, method=method | wrong)
        refused("rank, alpha, family or layers is invalid", one, other, out)
    edit(other, method=method | {"rank": 3})
    refused("gives rank 3", one, other, out)
