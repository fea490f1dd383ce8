"""Adapters in folders: equal after loading, on any layout, several of one base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.peft.method import Method
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.adapters import METHODS, attached, base_values, logits, network, set_trained, trained_values

WITH_HEAD = Method("lora", rank=4, targets=("q_proj",), modules_to_save=("lm_head", "embed_tokens"))


@pytest.mark.parametrize(
    "method", [*METHODS.values(), WITH_HEAD], ids=lambda method: f"{method.name}{method.last_layers}"
)
def test_an_adapter_is_equal_after_saving_and_loading(tmp_path, method):
    from paddle_llm.peft.save import load_adapter, save_adapter, set_active

    model = attached(network(tmp_path), method)
    set_trained(model)
    save_adapter(model, Layout(), tmp_path / "adapter")
    values = trained_values(model)
    file = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert file.keys() == values.keys() and all(np.array_equal(file[name], values[name]) for name in values)

    other = network(tmp_path)
    base, weights = logits(other), base_values(other)
    load_adapter(other, tmp_path / "adapter", Layout())
    loaded = trained_values(other)
    assert loaded.keys() == values.keys() and all(np.array_equal(loaded[name], values[name]) for name in values)
    assert np.array_equal(logits(other), logits(model))
    set_active(other, None)
    assert np.array_equal(logits(other), base)
    assert all(np.array_equal(value, weights[name]) for name, value in base_values(other).items())


def test_several_adapters_of_one_base_can_be_switched(tmp_path):
    from paddle_llm.peft.merge import merge
    from paddle_llm.peft.save import load_adapter, save_adapter, set_active

    outputs = {}
    for seed, (name, method) in enumerate(
        {"one": METHODS["lora"], "two": Method("lora", rank=2), "three": METHODS["prefix"], "four": WITH_HEAD}.items()
    ):
        model = attached(network(tmp_path), method)
        set_trained(model, seed)
        save_adapter(model, Layout(), tmp_path / name)
        outputs[name] = logits(model)

    model = network(tmp_path)
    outputs[None] = logits(model)
    for name in ("one", "two", "three", "four"):
        load_adapter(model, tmp_path / name, Layout(), name)
    for name in ("three", None, "one", "four", "two", "one", None):
        set_active(model, name)
        assert np.array_equal(logits(model), outputs[name]), name
    set_active(model, "one")
    merge(model)
    set_active(model, "four")  # takes the merged weights back first
    assert np.array_equal(logits(model), outputs["four"])
    with pytest.raises(UserError, match="Unknown adapter: 'five'. Use one of one, two, three, four"):
        set_active(model, "five")


def test_training_continues_from_a_folder(tmp_path):
    from paddle_llm.peft.save import load_adapter, save_adapter

    model = attached(network(tmp_path), METHODS["lora"])
    set_trained(model)
    save_adapter(model, Layout(), tmp_path / "adapter")
    again = attached(network(tmp_path), METHODS["lora"])
    parameters = {id(parameter) for parameter in again.parameters()}
    load_adapter(again, tmp_path / "adapter", Layout())
    assert {id(parameter) for parameter in again.parameters()} == parameters  # those that an optimizer may hold
    assert np.array_equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("layout", "family"),
    [
        (Layout(tensor=2), "llama"),
        (Layout(tensor=2), "chatglm_v2"),
        (Layout(tensor=2), "glm"),
        (Layout(pipeline=2), "llama"),
    ],
    ids=str,
)
def test_an_adapter_saved_on_one_layout_loads_on_another(tmp_path, layout, family):
    """The initial values equal those of one process; saved on two ranks and loaded in one, and the reverse."""
    methods = {name: METHODS[name] for name in ("lora", "prefix", "adapter")}
    vocabulary = {"vocab_size": 121} if family == "llama" else {}
    if family == "llama":
        methods["head"] = WITH_HEAD
    parts = run_ranks(_save_on_ranks, 2, layout, family, methods, str(tmp_path), vocabulary, timeout=120, quiet=True)
    from paddle_llm.peft.save import load_adapter, save_adapter

    for name, method in methods.items():
        model = attached(network(tmp_path / "one", family, **vocabulary), method)
        first, file = trained_values(model), load_file(tmp_path / name / "adapter_model.safetensors")
        assert file.keys() == first.keys()
        assert all(np.array_equal(file[key], first[key]) for key in first)
        load_adapter(model, tmp_path / name, Layout())
        set_trained(model)
        save_adapter(model, Layout(), tmp_path / "back" / name)
    again = run_ranks(
        _load_on_ranks, 2, layout, family, list(methods), str(tmp_path), vocabulary, timeout=120, quiet=True
    )
    assert again == [True, True] and parts == [True, True]


def _start(layout: Layout):
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.training.arguments import training_arguments

    start_process("cpu", layout.world_size)
    training_arguments(RunConfig(output_dir="/nowhere", device="cpu", per_device_train_batch_size=1), layout)


def _save_on_ranks(layout, family, methods, folder, overrides) -> bool:
    _start(layout)
    import paddle.distributed as dist

    from paddle_llm.peft.save import save_adapter

    for name, method in methods.items():
        model = attached(network(Path(folder) / f"rank{dist.get_rank()}", family, layout, **overrides), method, layout)
        save_adapter(model, layout, Path(folder) / name)
    return True


def _load_on_ranks(layout, family, names, folder, overrides) -> bool:
    """Saved in one process, loaded and saved on ranks: the same file, byte for byte."""
    _start(layout)
    import paddle.distributed as dist

    from paddle_llm.peft.save import load_adapter, save_adapter

    same = []
    for name in names:
        model = network(Path(folder) / f"rank{dist.get_rank()}", family, layout, **overrides)
        load_adapter(model, Path(folder) / "back" / name, layout)
        save_adapter(model, layout, Path(folder) / "again" / name)
        one, two = (load_file(Path(folder) / side / name / "adapter_model.safetensors") for side in ("back", "again"))
        same.append(one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one))
    return all(same)


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    from paddle_llm.peft.save import load_adapter, save_adapter

    model = attached(network(tmp_path), METHODS["lora"])
    folder = tmp_path / "adapter"
    save_adapter(model, Layout(), folder)
    with pytest.raises(
        UserError, match=r"another base: layers 4 \(this base: 3\)\. Give the base that it was trained on"
    ):
        load_adapter(network(tmp_path, num_hidden_layers=3), folder, Layout())
    with pytest.raises(UserError, match="has no adapter_config.json"):
        load_adapter(model, tmp_path, Layout())
    described = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (
        ({"name": "mora"}, "unknown method 'mora'"),
        ({"pissa": True}, r"unknown settings \['pissa'\]"),
        ({"targets": ["q_proj"]}, "does not match adapter_config.json"),
    ):
        changed = {**described, "method": {**described["method"], **change}}
        (folder / "adapter_config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            load_adapter(network(tmp_path), folder, Layout())
    with pytest.raises(UserError, match="No adapter is attached"):
        save_adapter(network(tmp_path), Layout(), tmp_path / "nothing")
