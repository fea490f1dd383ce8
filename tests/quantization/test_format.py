"""GPTQ's layout: packing, and reading of folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import WeightFiles, write_safetensors
from paddle_llm.models.weights.gptq.format import BITS, numbers_per_block, pack, read_settings, unpack
from paddle_llm.quantization.grid import Grid, from_tensors, round_to_nearest


def numbers(count: int, columns: int, bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, (count, columns), dtype=np.uint8)


@pytest.mark.parametrize("bits", BITS)
def test_packed_numbers_are_unpacked(bits):
    found = numbers(96, 5, bits)
    words = pack(found, bits)
    assert words.dtype == np.int32 and words.shape == (96 * bits // 32, 5)
    np.testing.assert_array_equal(unpack(words, bits), found)


@pytest.mark.parametrize("bits", BITS)
def test_packed_numbers_are_a_stream_of_bits(bits):
    found = numbers(numbers_per_block(bits) * 2, 1, bits)
    stream = sum(int(number) << (bits * place) for place, number in enumerate(found[:, 0]))
    assert pack(found, bits).view(np.uint32)[:, 0].tolist() == [
        stream >> (32 * word) & 0xFFFFFFFF for word in range(len(found) * bits // 32)
    ]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_rounding_to_nearest_stays_within_half_a_step(bits, symmetric):
    weight_IO = np.random.default_rng(0).standard_normal((96, 32)).astype(np.float32)
    weight_IO[:, 0] = np.abs(weight_IO[:, 0])  # a column without negative values
    weight_IO[:, 1] = 0
    found = round_to_nearest(weight_IO, Grid(bits, symmetric), 40)
    assert found.scales_GO.shape == (3, 32) and found.groups_I.tolist() == [0] * 40 + [1] * 40 + [2] * 16
    assert (found.zeros_GO >= 1).all() and (found.zeros_GO < 1 << bits).all()
    steps_IO = found.scales_GO[found.groups_I]
    difference_IO = np.abs(weight_IO - found.dequantized())
    # float16 rounds a scale by up to 2^-11, which counts for each step from the zero; the largest positive
    # value of a symmetric grid is half a step beyond its last code.
    limit = 0.5 + (1 << bits) * 2.0**-11
    assert (difference_IO <= steps_IO * limit + 1e-6).all()
    assert (difference_IO[:, 1] == 0).all()
    again = from_tensors(found.tensors(), bits)
    np.testing.assert_array_equal(again.dequantized(), found.dequantized())


# ---- folders --------------------------------------------------------------------------------------------------------


def write_layer(folder, found, drop=(), **changes) -> dict:
    """Write a folder with one quantized layer, and return its quantization_config."""
    tensors = {f"model.a.{part}": value for part, value in found.tensors().items() if part not in drop}
    tensors["model.a.bias"] = np.ones(32, np.float32)
    write_safetensors(folder / "model.safetensors", tensors, format="pt")
    config = {"quant_method": "gptq", "bits": found.bits, "group_size": 32, "checkpoint_format": "gptq", **changes}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return config


@pytest.fixture
def layer():
    weight_IO = np.random.default_rng(1).standard_normal((96, 32)).astype(np.float32)
    return round_to_nearest(weight_IO, Grid(4), 32)


@pytest.mark.parametrize("drop", [(), ("g_idx",)])
def test_a_quantized_layer_is_read_as_its_weight(layer, tmp_path, drop):
    write_layer(tmp_path, layer, drop)
    files = WeightFiles(tmp_path)
    assert sorted(files.names()) == ["model.a.bias", "model.a.weight"]
    assert files.is_weight("model.a.weight") and files.shape("model.a.weight") == (32, 96)
    np.testing.assert_array_equal(files.view("model.a.weight"), layer.dequantized().T)
    np.testing.assert_array_equal(files.read("model.a.weight", 0, 3, 7), layer.dequantized().T[3:7])
    assert files.quantized == (
        "GPTQ, 4 bits, groups of 32",
        sum(t.nbytes for t in layer.tensors().values() if drop == () or t.ndim > 1),
    )


def test_the_format_gptq_v2_stores_zeros_as_they_are(layer, tmp_path):
    write_layer(tmp_path, layer, checkpoint_format="gptq_v2")
    shifted = layer.dequantized() + layer.scales_GO[layer.groups_I]  # zeros are read one smaller
    np.testing.assert_allclose(WeightFiles(tmp_path).view("model.a.weight"), shifted.T, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bits": 5}, "bits = 5"),
        ({"bits": 3}, "3 bits and checkpoint_format = 'gptq'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
        ({"dynamic": {"-:.*down.*": {}}}, "other settings for some layers"),
        ({"pack_dtype": "int8"}, "pack_dtype = 'int8'"),
        ({"group_size": 0}, "group_size = 0"),
    ],
)
def test_unreadable_settings_are_problems(layer, tmp_path, changes, problem):
    config = write_layer(tmp_path, layer, **changes)
    assert problem in read_settings({"quantization_config": config})


def test_broken_layers_are_refused(layer, tmp_path):
    write_layer(tmp_path, layer, drop=("scales",))
    with pytest.raises(UserError, match=r"the quantized layer model.a is broken: scales is missing"):
        WeightFiles(tmp_path)
    write_layer(tmp_path, layer, group_size=16)
    with pytest.raises(UserError, match=r"qzeros has the shape \[3, 4\] instead of \[6, 4\]"):
        WeightFiles(tmp_path)
    tensors = layer.tensors()
    tensors["g_idx"][5] = 3
    write_layer(tmp_path, layer)
    write_safetensors(tmp_path / "model.safetensors", {f"model.a.{k}": v for k, v in tensors.items()}, format="pt")
    with pytest.raises(UserError, match="names a group that does not exist; there are 3"):
        WeightFiles(tmp_path)
