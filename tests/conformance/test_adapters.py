"""PEFT adapters: settings, logits, merged weights and gradients, compared with Hugging Face's peft 0.17.1."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.peft.hugging_face.config import check_settings
from paddle_llm.peft.hugging_face.fields import BY_NAME, FIELDS, HARMLESS, HONOURED, REFUSED, problems_of
from paddle_llm.peft.method import Method
from tests.export.environments import ROOT, peft_path
from tests.export.test_merged import base_folder, network_of, trained_adapter
from tests.helpers.models.adapters import attached, logits
from tests.peft import peft_library

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "bloom": {},
    "opt": {},
}

# ---- fields ---------------------------------------------------------------------------------------------------------


@pytest.mark.hf
def test_every_field_of_the_installed_peft_is_on_exactly_one_list():
    import peft

    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    listed = {field.name for field in FIELDS if not field.since}
    assert fields == listed and len(BY_NAME) == len(FIELDS)
    assert {field.group for field in FIELDS} == {HONOURED, HARMLESS, REFUSED}
    saved = {kind.value for kind in peft.PeftType} - {"LORA"}
    assert saved and all(list(problems_of({**PLAIN, "peft_type": kind})) for kind in saved)


NEWER = ("0.18.1", "0.19.1", "0.20.0", "0.21.0")
_WRITE = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np, peft
from tests.peft import peft_library
base, folder, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for name, settings in cases.items():
    model = peft_library.write(base, folder / name, **settings)
    np.save(folder / f"{name}.npy", peft_library.logits(model))
fields = [field.name for field in dataclasses.fields(peft.LoraConfig)]
print(json.dumps([peft.__version__, fields, [kind.value for kind in peft.PeftType]]))
"""


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.parametrize("version", NEWER)
def test_newer_releases_have_the_fields_of_the_table_and_write_the_same_adapters(version, bases, tmp_path):
    number = tuple(map(int, version.split(".")[:2]))
    newer = ("dora", "ranks and alphas", "embedding", "modules to save", "some layers, rslora")
    cases = {name: {"r": 4, "lora_alpha": 8, **CASES[name][1]} for name in newer}
    paths = os.pathsep.join([str(peft_path(version)), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(bases("llama")), str(tmp_path), json.dumps(cases)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, fields, kinds = json.loads(done.stdout.splitlines()[-1])
    assert found == version
    listed = {
        field.name
        for field in FIELDS
        if not field.since or (field.since[0].isdigit() and tuple(map(int, field.since.split("."))) <= number)
    }
    assert set(fields) == listed
    assert all(list(problems_of({**PLAIN, "peft_type": kind})) for kind in kinds if kind != "LORA")
    for name in cases:
        close(ours_over(bases("llama"), tmp_path / name), np.load(tmp_path / f"{name}.npy"))


@pytest.mark.hf
def test_what_peft_saves_by_default_is_accepted(tmp_path):
    import peft

    peft.LoraConfig(**{name: value for name, value in PLAIN.items() if name != "peft_type"}).save_pretrained(tmp_path)
    check_settings(tmp_path, json.loads((tmp_path / CONFIG).read_text()))


ON = st.one_of(
    st.just(True),
    st.integers(1, 9),
    st.text("abc", min_size=1, max_size=5),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 9), min_size=1, max_size=2),
)
NAMES = st.sampled_from([field.name for field in FIELDS if field.group == REFUSED]) | st.from_regex(
    r"(use|loha)_[a-z]{3,9}(_config)?", fullmatch=True
)


@settings(max_examples=200)
@given(name=NAMES, value=ON)
def test_a_rejected_or_unknown_field_is_an_error_unless_it_is_off(name, value):
    if BY_NAME.get(name) is not None and BY_NAME[name].group != REFUSED:
        return
    (problem,) = problems_of({**PLAIN, name: value})
    assert problem.startswith(f"{name} ")
    with pytest.raises(UserError, match=name):
        check_settings(Path("adapter"), {**PLAIN, name: value})
    for off in (None, False, [], {}):
        assert not list(problems_of({**PLAIN, name: off}))


@pytest.mark.parametrize(
    "name, value",
    [
        *(("init_lora_weights", one) for one in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga")),
        *(("init_lora_weights", one) for one in ("strange", 1, [True])),
        *(("task_type", one) for one in ("SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION", "strange")),
        *(("bias", one) for one in ("lora", True, None)),
        *(("r", one) for one in (0, -1, 2.0, True, None, "4")),
        *(("lora_alpha", one) for one in (None, "8", float("nan"), [8])),
        *(("rank_pattern", one) for one in ({"q_proj": 0}, {"q_proj": None}, ["q_proj"])),
        *(("layers_to_transform", one) for one in ("0", [0.5], [None])),
        ("target_modules", [1]),
        ("modules_to_save", "lm_head"),
        ("use_dora", "yes"),
    ],
)  # fmt: skip
def test_unsupported_values_are_an_error(name, value):
    assert [one for one in problems_of({**PLAIN, name: value}) if one.startswith(f"{name} ")]


# ---- logits, merged weights -----------------------------------------------------------------------------------------

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ranks and alphas": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"v_proj": 2, r"layers\.[02]\.self_attn\.q_proj": 6, "model.layers.1.mlp.down_proj": 3},
            "alpha_pattern": {"q_proj": 5, r".*\.3\.mlp\.down_proj": 1.5},
        },
    ),
    "some layers, rslora": (
        "llama",
        {
            "target_modules": ["q_proj", "up_proj"],
            "layers_to_transform": [1, 2],
            "layers_pattern": "layers",
            "use_rslora": True,
            "lora_alpha": 7,
        },
    ),
    "dora": ("llama", {"target_modules": "all-linear", "use_dora": True, "rank_pattern": {"q_proj": 2}}),
    "dora, bloom": ("bloom", {"target_modules": ["query_key_value", "dense"], "use_dora": True, "use_rslora": True}),
    "dora, bias all": ("opt", {"target_modules": ["v_proj", "fc1"], "use_dora": True, "bias": "all"}),
    "bias all": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "bias all, bloom": ("bloom", {"target_modules": ["dense"], "bias": "all"}),
    "bias lora_only": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    "regular expression": ("llama", {"target_modules": r".*\.[13]\.(self_attn|mlp)\.(q|gate)_proj"}),
    "excluded": ("llama", {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*|.*down_proj"}),
    "defaults": ("qwen2", {}),
    "modules to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "modules to save, in a target": ("llama", {"target_modules": "all-linear", "modules_to_save": ["mlp"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, dora": ("llama", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "embedding, tied": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, bloom": ("bloom", {"target_modules": ["word_embeddings", "query_key_value"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"], "rank_pattern": {"lm_head": 2}}),
    "head, dora": ("qwen2", {"target_modules": ["lm_head", "q_proj"], "use_dora": True}),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function from the name of a shape to its folder, which is written on demand."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            family = "llama" if name == "tied" else name
            made[name] = base_folder(tmp_path_factory.mktemp(name) / "base", family, **SHAPES[name])
        return made[name]

    return folder


@pytest.mark.hf
@pytest.mark.parametrize("case", CASES)
def test_peft_adapters_compute_the_same_values(case, bases, tmp_path):
    shape, described = CASES[case]
    tied = shape in ("tied", "bloom") and case.startswith("embedding")
    compare(bases(shape), tmp_path, {"r": 4, "lora_alpha": 8, **described}, merges=not tied)


def compare(base: Path, folder: Path, described: dict[str, Any], *, merges: bool = True) -> None:
    """Compare an adapter that peft writes with these settings: logits, merged weights, conversion in both directions."""
    from paddle_llm.export.source.open import open_source
    from tests.helpers.convert import from_peft, to_peft

    theirs = folder / "theirs"
    peft_library.write(base, theirs, **described)
    model = peft_library.loaded(base, theirs)
    wanted = peft_library.logits(model)
    close(ours_over(base, theirs), wanted)
    from_peft(theirs, folder / "ours")
    close(ours_over(base, folder / "ours"), wanted)
    to_peft(folder / "ours", folder / "again")
    close(peft_library.logits(peft_library.loaded(base, folder / "again")), wanted)
    if not merges:
        with pytest.raises(UserError, match="embedding cannot be merged"):
            open_source(base, adapter=theirs)
        return
    with peft_library.quiet():
        merged = {name: value.numpy() for name, value in model.merge_and_unload().state_dict().items()}
    source = open_source(base, adapter=theirs)
    from paddle_llm.models.weights.names import hugging_face

    for name in source.names():
        ours = source.read(name)
        there = hugging_face(source.family.name, name, ours.ndim)
        close(ours.T if there.transpose else ours, merged[there.name])


def close(found: np.ndarray, wanted: np.ndarray, *, rounding: float = 1e-5) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding * max(np.abs(wanted).max(), 1e-3))


def ours_over(base: Path, adapter: Path) -> np.ndarray:
    import paddle

    from paddle_llm.peft.save import load_adapter

    model = load_adapter(network_of(base, "float32"), adapter, Layout())
    model.eval()
    return logits(model, inputs={"input_ids": paddle.to_tensor(peft_library.TOKENS)})


LINEARS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
OTHERS = {
    "llama": ["lm_head", "embed_tokens", "norm"],
    "qwen2": ["lm_head", "embed_tokens", "input_layernorm"],
    "bloom": ["ln_f"],
    "opt": ["final_layer_norm"],
}  # fmt: skip


@st.composite
def adapters(draw: Any) -> tuple[str, dict[str, Any]]:
    """Draw (family, settings of LoraConfig) as people combine them, with mixed names, numbers and expressions."""
    family = draw(st.sampled_from(sorted(LINEARS)))
    names = draw(st.lists(st.sampled_from(LINEARS[family]), min_size=1, max_size=4, unique=True))
    patterns = st.one_of(
        st.sampled_from(LINEARS[family]),
        st.builds(lambda number, name: rf"\.{number}\..*{name}", st.integers(0, 3), st.sampled_from(LINEARS[family])),
        st.builds(lambda name: f"(self_attn|self_attention|mlp).{name}", st.sampled_from(LINEARS[family])),
    )
    found: dict[str, Any] = {
        "r": draw(st.integers(1, 5)),
        "lora_alpha": draw(st.one_of(st.integers(1, 32), st.sampled_from([0.5, 7.5]))),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "none", "all", "lora_only"])),
        "rank_pattern": draw(st.dictionaries(patterns, st.integers(1, 6), max_size=3)),
        "alpha_pattern": draw(st.dictionaries(patterns, st.integers(1, 40), max_size=3)),
        "target_modules": draw(
            st.sampled_from(
                [names, names, "all-linear", rf".*[.]({'|'.join(names)})", rf".*[.][02][.].*({'|'.join(names)})"]
            )
        ),
        "modules_to_save": draw(st.none() | st.lists(st.sampled_from(OTHERS[family]), min_size=1, unique=True)),
        "exclude_modules": draw(st.none() | st.lists(st.sampled_from(LINEARS[family]), max_size=1)),
    }
    if isinstance(found["target_modules"], list):
        found["layers_to_transform"] = draw(
            st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=3) | st.integers(0, 3)
        )
    return family, found


def check_generated(bases: Any, networks: dict[str, Any], folder: Path, family: str, described: dict[str, Any]) -> None:
    """Compare the logits of an adapter that peft writes with those of peft."""
    import paddle

    from paddle_llm.peft.save import load_adapter, set_active

    base, theirs = bases(family), folder / "theirs"
    shutil.rmtree(theirs, ignore_errors=True)
    try:
        peft_library.write(base, theirs, **described)
    except ValueError:  # peft raises an error: no layer is left
        return
    if family not in networks:
        networks[family] = network_of(base, "float32")
        networks[family].eval()
    model = load_adapter(networks[family], theirs, Layout())
    found = logits(model, inputs={"input_ids": paddle.to_tensor(peft_library.TOKENS)})
    set_active(model, None)
    # A scale of up to 31, in several layers, multiplies the rounding errors of float32 (above 1e-5 for 1 of 500 adapters).
    close(found, peft_library.logits(peft_library.loaded(base, theirs)), rounding=5e-5)


@pytest.mark.hf
def test_generated_adapters_compute_the_same_values(bases, tmp_path):
    networks: dict[str, Any] = {}

    @settings(max_examples=12, phases=[Phase.generate])  # shrinking takes minutes
    @given(adapter=adapters())
    def compares(adapter):
        check_generated(bases, networks, tmp_path, *adapter)

    compares()


@pytest.mark.hf
@pytest.mark.slow
def test_many_generated_adapters_compute_the_same_values(bases, tmp_path):
    networks: dict[str, Any] = {}

    @settings(max_examples=500, phases=[Phase.generate])
    @given(adapter=adapters())
    def compares(adapter):
        check_generated(bases, networks, tmp_path, *adapter)

    compares()


# ---- gradients, training --------------------------------------------------------------------------------------------


@pytest.mark.hf
@pytest.mark.parametrize("shape, targets", [("llama", ("all-linear",)), ("opt", ("v_proj", "linear1", "out_proj"))])
def test_gradients_of_dora_equal_peft(shape, targets, bases, tmp_path):
    """Compare gradients of A, B and the magnitudes; the norm is a constant in the backward pass of both libraries."""
    import paddle
    from safetensors.numpy import load_file, save_file

    from paddle_llm.peft.save import load_adapter
    from tests.helpers.convert import to_peft

    base = bases(shape)
    method = Method("lora", rank=3, dora=True, targets=targets, ranks=(("v_proj", 2),))
    ours, theirs = trained_adapter(tmp_path / "ours", base, method), tmp_path / "theirs"
    to_peft(ours, theirs)
    model = load_adapter(network_of(base, "float32"), ours, Layout())
    model.eval()
    found = model(input_ids=paddle.to_tensor(peft_library.TOKENS))
    found = found[0] if isinstance(found, tuple) else found
    weights_BSV = np.random.default_rng(0).standard_normal(found.shape).astype(np.float32)
    (found * paddle.to_tensor(weights_BSV)).sum().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in trainable(model).items()}
    wanted = peft_library.gradients(peft_library.loaded(base, theirs, trains=True), weights_BSV)
    # Gradients are written and converted like an adapter, so that they get the same new names.
    (tmp_path / "slopes").mkdir()
    shutil.copy(ours / CONFIG, tmp_path / "slopes")
    save_file(gradients, tmp_path / "slopes" / TENSORS)
    to_peft(tmp_path / "slopes", tmp_path / "renamed")
    renamed = load_file(tmp_path / "renamed" / TENSORS)
    assert renamed.keys() == wanted.keys() and any("magnitude" in name for name in wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(renamed[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.hf
def test_initial_dora_equals_the_base_and_peft(bases):
    import paddle
    from peft import LoraConfig, get_peft_model

    base = bases("llama")
    model = attached(network_of(base, "float32"), Method("lora", rank=4, dora=True, targets=("q_proj", "down_proj")))
    model.eval()
    close(
        logits(model, inputs={"input_ids": paddle.to_tensor(peft_library.TOKENS)}),
        peft_library.logits(peft_library.base_model(base)),
    )
    peft = get_peft_model(
        peft_library.base_model(base), LoraConfig(use_dora=True, target_modules=["q_proj", "down_proj"])
    )
    ours = trainable(model)
    for name, parameter in peft.named_parameters():
        if "magnitude" in name:
            layer = name.removeprefix("base_model.model.model.").partition(".lora_")[0]
            found = ours[f"llama.{layer}.lora_magnitude"].numpy()
            np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=1e-6)


@pytest.mark.hf
def test_dropout_in_dora_equals_peft(bases, monkeypatch):
    """Use the same mask in both libraries: dropout that keeps every second input."""
    import paddle
    import torch
    from peft import LoraConfig, get_peft_model

    from paddle_llm.peft.methods import lora

    base = bases("llama")
    settings = {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj"], "lora_dropout": 0.5}
    theirs = get_peft_model(peft_library.base_model(base), LoraConfig(**settings))
    method = Method("lora", rank=4, alpha=8.0, dora=True, targets=("q_proj",), dropout=0.5)
    ours = attached(network_of(base, "float32"), method)
    with torch.no_grad():
        named = dict(theirs.named_parameters())
        values = np.random.default_rng(0)
        for name, parameter in trainable(ours).items():
            value = values.standard_normal(parameter.shape).astype(np.float32)
            parameter.set_value(paddle.to_tensor(value))
            layer, _, own = name.rpartition(".")
            end = "lora_magnitude_vector.default.weight" if own == "lora_magnitude" else f"{own}.default.weight"
            named[f"base_model.model.model.{layer.removeprefix('llama.')}.{end}"].copy_(torch.tensor(value.T))
    monkeypatch.setattr(lora.F, "dropout", lambda x, p: x * paddle.arange(x.shape[-1], dtype=x.dtype) % 2)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x * torch.arange(x.shape[-1], dtype=x.dtype) % 2)
    ours.train()
    theirs.train()
    close(
        logits(ours, inputs={"input_ids": paddle.to_tensor(peft_library.TOKENS)}),
        theirs(torch.tensor(peft_library.TOKENS)).logits.detach().numpy(),
    )


def trainable(model: Any) -> dict[str, Any]:
    from paddle_llm.peft.attach import trainable_tensors

    return {name: parameter for name, parameter, _ in trainable_tensors(model)}


@pytest.mark.hf
def test_a_pickled_adapter_is_read_only_if_allowed(bases, tmp_path):
    import torch
    from safetensors.torch import load_file

    from tests.helpers.convert import from_peft

    theirs = tmp_path / "theirs"
    peft_library.write(bases("llama"), theirs, r=4, target_modules=["q_proj"])
    torch.save(load_file(theirs / TENSORS), theirs / "adapter_model.bin")
    from_peft(theirs, tmp_path / "one")  # safetensors takes precedence, as in peft
    (theirs / TENSORS).unlink()
    with pytest.raises(UserError, match="adapter_model.bin.*--allow_pickle"):
        from_peft(theirs, tmp_path / "two")
    from_peft(theirs, tmp_path / "two", allow_pickle=True)
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()


RENAMED = {
    "module": ("base_model.", "module.base_model."),
    "_orig_mod": ("base_model.model.", "base_model.model._orig_mod."),
    "_fsdp_wrapped_module": ("layers.1.", "layers.1._fsdp_wrapped_module."),
    "_checkpoint_wrapped_module": (".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "sft": ("lora_A.weight", "lora_A.sft.weight"),
    "twice": ("base_model.model.", "base_model.model.base_model.model."),
}


@pytest.mark.hf
def test_names_that_peft_skips_are_an_error_with_their_origin(bases, tmp_path):
    from peft import PeftModel

    from paddle_llm.peft.adapter_files import read_method

    base = bases("llama")
    peft_library.write(base, tmp_path, r=4, target_modules=["q_proj"])
    tensors = load_file(tmp_path / TENSORS)
    for word, (old, new) in RENAMED.items():
        save_file({key.replace(old, new): value for key, value in tensors.items()}, tmp_path / TENSORS)
        with pytest.warns(UserWarning, match="missing adapter keys"):
            PeftModel.from_pretrained(peft_library.base_model(base), tmp_path)
        with pytest.raises(UserError, match=word):
            read_method(tmp_path)
