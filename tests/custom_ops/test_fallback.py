"""What `fused_ln` computes and logs if its operator cannot be built or does not support the tensors."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import fused_ln
import numpy as np
import paddle
import pytest
from fused_ln import fallback

from tests.custom_ops.test_operator import EPSILON, LIMITS, assert_close, formula, norm, results, values

pytestmark = pytest.mark.usefixtures("own_operator")


@pytest.fixture
def nothing_built(monkeypatch):
    monkeypatch.setattr(fused_ln, "_library", lambda: (None, "no C++ compiler"))


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """Return the list of the lines that are logged from now on."""
    lines: list[str] = []
    monkeypatch.setattr(fused_ln._log, "info", lines.append)
    return lines


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("weight_type", LIMITS)
@pytest.mark.parametrize("dtype", LIMITS)
def test_values_and_gradients_without_the_operator(nothing_built, dtype, weight_type, frozen):
    x = values(2, 5, 48, dtype=dtype, frozen=frozen)
    weight = values(48, dtype=weight_type, seed=1, frozen=frozen)
    y, invvar = fused_ln.fused_rms_norm(x, weight, EPSILON)
    assert (y.dtype, invvar.dtype, invvar.stop_gradient) == (weight.dtype, paddle.float32, True)
    assert tuple(invvar.shape) == (2, 5)
    assert_close(results(norm, x, weight), results(formula, x, weight), max(2e-6, LIMITS[dtype], LIMITS[weight_type]))


@pytest.mark.parametrize("types", [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")], ids=str)
def test_the_rounding_of_llama_is_the_same_without_the_operator(types, monkeypatch):
    """Mixed types, which the operator does not round like LLaMA, are rounded like unfused LLaMA."""
    x, weight = values(64, 96, dtype=types[0]), values(96, dtype=types[1], seed=1)
    wide = x.astype("float32")
    normed = wide * paddle.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    unfused = normed.astype(types[1]).astype("float32") * weight.astype(
        "float32"
    )  # exact, then rounded as LLaMA's product
    unfused = unfused.astype(types[1]).astype("float32").numpy()
    found = [fused_ln.fused_rms_norm(x, weight, EPSILON, rounding="llama")[0]]
    monkeypatch.setattr(fused_ln, "_library", lambda: (None, "no C++ compiler"))
    found.append(fused_ln.fused_rms_norm(x, weight, EPSILON, rounding="llama")[0])
    for y in found:
        assert (y.astype("float32").numpy() == unfused).mean() > 0.999
    assert (norm(x, weight).astype("float32").numpy() != unfused).mean() > 0.05
    with pytest.raises(ValueError, match="rounding='no' is unknown"):
        fused_ln.fused_rms_norm(x, weight, EPSILON, rounding="no")


def test_float64_is_computed_in_float64():
    x, weight = values(3, 8).astype("float64"), values(8, seed=1).astype("float64")
    y, invvar = fused_ln.fused_rms_norm(x, weight, EPSILON)
    assert y.dtype == invvar.dtype == paddle.float64
    np.testing.assert_allclose(y.numpy(), formula(x, weight).numpy(), rtol=1e-14)


def test_rows_that_are_too_long_for_the_operator_are_computed_and_logged(logged):
    x, weight = values(2, 65537), values(65537, seed=1)
    assert_close(results(norm, x, weight), results(formula, x, weight), 1e-5)
    assert logged == [
        "RMSNorm on the cpu: Paddle's plain operations. The operator of fused_ln is not used: its maximum hidden size is 65536"
    ]


def test_the_log_names_the_implementation(logged, monkeypatch):
    norm(values(2, 8, dtype="float16"), values(8, dtype="bfloat16"))
    norm(values(2, 8), values(8))
    assert logged == ["RMSNorm on the cpu: operator of fused_ln"]
    norm(values(2, 8).astype("float64"), values(8))
    assert logged[1:] == [
        "RMSNorm on the cpu: Paddle's plain operations. The operator of fused_ln is not used: it does not support fp64"
    ]


def test_every_rank_logs_why_it_is_slower(logged, nothing_built, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "3")
    norm(values(2, 8), values(8))
    assert logged == [
        "rank 3: RMSNorm on the cpu: Paddle's plain operations. The operator of fused_ln is not used: no C++ compiler"
    ]


def test_an_operator_that_fails_is_not_used(monkeypatch, logged):
    """This is known at the first question, before a model is built."""

    def broken(x, weight):
        raise RuntimeError("no kernel image is available for execution on the device")

    assert fallback.try_out(broken, "cpu").endswith("no kernel image is available for execution on the device")
    assert fallback.try_out(lambda x, weight: x * 1.5 + weight * 0, "cpu") == "it computes wrong values"
    assert fallback.try_out(lambda x, weight: fallback._plain(x, weight, 0.0, "fp32")[0], "cpu") == ""
    fused_ln._why_not_running.cache_clear()
    monkeypatch.setattr(fused_ln, "_run_operator", lambda x, weight, epsilon, rounding: broken(x, weight))
    try:
        assert fused_ln.why_not("cpu").startswith("it does not run: RuntimeError")
        norm(values(2, 8), values(8))
    finally:
        fused_ln._why_not_running.cache_clear()
    assert "Paddle's plain operations. The operator of fused_ln is not used: it does not run" in logged[0]


def test_an_answer_while_a_program_is_recorded_is_not_cached():
    fallback._why_not_paddle_fused.cache_clear()
    fused_ln._why_not_running.cache_clear()
    asked = []

    def recorded(x):
        asked.append((fallback.paddle_fused_runs(), fused_ln.why_not("cpu")))
        return norm(x, paddle.ones([8]))

    paddle.jit.to_static(recorded, full_graph=True)(values(2, 8))
    assert asked == [(False, "")]
    assert (
        not fallback._why_not_paddle_fused.cache_info().currsize and not fused_ln._why_not_running.cache_info().currsize
    )


def test_a_paddle_without_the_marker_for_to_static_is_supported(monkeypatch):
    """Paddle before 3.2 does not have `paddle.jit.marker`."""
    monkeypatch.setitem(sys.modules, "paddle.jit.marker", ModuleType("marker"))
    original = fused_ln.fused_rms_norm
    try:
        assert importlib.reload(fused_ln).fused_rms_norm is not original

        def recorded(x):
            return norm(x, paddle.ones([8]))

        y = paddle.jit.to_static(recorded, full_graph=True)(paddle.ones([2, 8]))
        assert float(y.sum()) == pytest.approx(16, abs=1e-3)
    finally:
        monkeypatch.undo()
        importlib.reload(fused_ln)
