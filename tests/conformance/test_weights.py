"""Weights loaded from a folder equal transformers' state_dict tensor by tensor; a folder with warnings there is an error here.

`_STRICTER` lists the cases that are an error only here: transformers silently reads such folders and computes something
that their author did not intend.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note

from paddle_llm.core.errors import UserError
from tests.conformance.weight_folders import FAMILIES, Plan, config_of, plans, write

pytestmark = pytest.mark.hf
pytest.importorskip("torch", reason="needs the extra hf")

# part of the message -> whether a plan causes it
_STRICTER = {
    "differs from": lambda plan: plan.tied and plan.head == "different",
    "is stored as I8": lambda plan: plan.defect == "int8",
    "but that file does not contain it": lambda plan: plan.defect == "absent_from_shard",
    "occurs twice": lambda plan: plan.defect == "header_twice",
}


def read_by_transformers(folder: Path) -> tuple[dict[str, np.ndarray] | str, list[str]]:
    """Return the state_dict in float64, or the error or warning of transformers; and the tensors that it did not use."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float64)
    except Exception as error:  # its readers raise various types
        return f"{type(error).__name__}: {error}", []
    if found["missing_keys"] or found["mismatched_keys"] or found["error_msgs"]:
        return f"warned: {found}", []
    unset = [name for name, value in model.state_dict().items() if value.is_meta]
    if unset:
        return f"left without values: {unset}", []
    state = {name: value.to(torch.float64).numpy() for name, value in model.state_dict().items()}
    return state, list(found["unexpected_keys"])


@cache
def _network(family: str, tied: bool, folder: Path) -> tuple[Any, Any, dict[str, tuple[int, ...]]]:
    from paddle_llm.families.shape import facts_from_dict, find_family
    from paddle_llm.models.build import plain_configuration
    from paddle_llm.models.weights.weight_shapes import weight_shapes

    raw = config_of(family, tied=tied)
    found = find_family(facts_from_dict(raw, where="the test"))
    config = plain_configuration(folder, found, raw)
    return found, config, weight_shapes(config, found)


def read_by_us(plan: Plan, folder: Path) -> dict[str, np.ndarray]:
    """Return the same tensors with transformers' names, in float64; a tied head is the embedding.

    Raises:
        UserError: If the folder cannot be loaded.
    """
    from paddle_llm.models.weights.files import WeightFiles
    from paddle_llm.models.weights.load import locate_weights, read_shard
    from paddle_llm.models.weights.names import EMBEDDINGS, hugging_face
    from paddle_llm.models.weights.shards import Shard

    family, config, shapes = _network(plan.family, plan.tied, Path(plan.family))
    files = WeightFiles(folder, allow_pickle=True)
    located = locate_weights(files, shapes, family, config)
    state = {}
    for name, shape in shapes.items():
        axis = len(shape) - 1
        values = read_shard(files, located[name], Shard(shape, axis, ((0, shape[axis]),)), shape).astype(np.float64)
        there = hugging_face(plan.family, name, len(shape))
        state[there.name] = values.T if there.transpose else values
    if plan.tied:
        state["lm_head.weight"] = state[hugging_face(plan.family, EMBEDDINGS[plan.family], 2).name]
    return state


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_read_as_by_transformers(family, tmp_path_factory, capsys):
    @given(plans(family))
    def compare(plan: Plan) -> None:
        folder = tmp_path_factory.mktemp("folder")
        written = write(plan, folder)
        theirs, unexpected = read_by_transformers(folder)
        capsys.readouterr()
        try:
            ours = read_by_us(plan, folder)
        except UserError as error:
            note(f"refused: {error}; transformers: {theirs if isinstance(theirs, str) else 'reads it'}")
            stricter = [check for message, check in _STRICTER.items() if re.search(message, str(error))]
            assert isinstance(theirs, str) or any(check(plan) for check in stricter)
            return
        assert not isinstance(theirs, str), f"transformers refuses what is read here: {theirs}"
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
            if name in written:
                np.testing.assert_array_equal(ours[name], written[name], err_msg=name)
        _check_report(capsys.readouterr().err, plan, unexpected)

    compare()


def _check_report(output: str, plan: Plan, unexpected: list[str]) -> None:
    """Check that unused tensors and files are reported by name."""
    for name in unexpected:
        if name.endswith("inv_freq"):  # an unused buffer of older versions
            continue
        assert name.split(".", 1)[1] in output, output
    for name in plan.unused:
        is_read = name.endswith(".bin") and plan.layout.startswith("bin")
        assert (name in output) == (name != "optimizer.pt" and not is_read), output
    if plan.copies and plan.layout in ("shards", "bin_shards"):
        assert "in more than one file" in output


@pytest.mark.parametrize("index_first", [True, False])
def test_the_index_chooses_between_two_copies(index_first, tmp_path):
    """The index decides here; transformers uses the copy in the file that it reads last."""
    import json

    from safetensors.numpy import save_file

    from paddle_llm.models.weights.files import WeightFiles

    one, two = np.zeros(3, np.float32), np.ones(3, np.float32)
    save_file({"a": one}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"a": two, "b": two}, tmp_path / "model-00002-of-00002.safetensors")
    named = f"model-0000{1 if index_first else 2}-of-00002.safetensors"
    index = {"a": named, "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    files = WeightFiles(tmp_path)
    np.testing.assert_array_equal(files.view("a"), one if index_first else two)
    assert files.copies == ({"a"} if index_first else set())
