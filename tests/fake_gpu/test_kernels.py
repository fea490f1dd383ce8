"""Which kernels are chosen on a GPU: attention by place and type, RMSNorm by what is installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_llm.generation.eval_mode import generating
from paddle_llm.models.patches import mistral
from paddle_llm.models.patches.shared import attention_kernels, rms_norm
from tests.custom_ops import conftest as _fused_ln_on_the_path  # noqa: F401
from tests.helpers.gpu.kernels import Kernels, network, without_cpu_kernels
from tests.helpers.models.adapters import METHODS, attached, set_trained
from tests.helpers.models.networks import batch
from tests.models.test_attention_kernels import packed_batch, step

# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kernels(on_card: None, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Replace Paddle's kernels by functions; float32 of the CPU counts as 16 bits."""
    found = Kernels()
    monkeypatch.setattr(F, "scaled_dot_product_attention", found.scaled_dot_product_attention)
    monkeypatch.setattr(F, "flashmask_attention", found.flashmask_attention)
    monkeypatch.setattr(attention_kernels, "in_16_bits", lambda *tensors: True)
    monkeypatch.setattr(attention_kernels, "built_with_flash_kernels", lambda: True)
    monkeypatch.setattr(paddle.base.core.Place, "gpu_device_id", lambda self: 0)
    return found


@pytest.mark.parametrize(
    ("family", "packed", "kernel"),
    [
        ("llama", False, "causal"),
        ("llama", True, "flashmask"),
        ("chatglm_v2", False, "causal"),
        ("chatglm_v2", True, "flashmask"),
        ("bloom", False, "masked"),
        ("bloom", True, "masked"),
    ],
)
def test_a_network_on_a_gpu_trains_by_flash_attention(
    kernels: Kernels, tmp_path: Path, family: str, packed: bool, kernel: str
) -> None:
    with without_cpu_kernels():
        model = network(tmp_path, family, flash=True, num_hidden_layers=1)
        found = step(model, packed_batch(family) if packed else batch(family))
    assert set(kernels.calls) == {kernel}
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize(("window", "masked"), [(None, False), (4, False), (3, True)])
def test_mistral_needs_a_mask_beyond_its_window_only(window: int | None, masked: bool) -> None:
    config = SimpleNamespace(use_flash_attention=True, sliding_window=window)
    mask = mistral.attention_mask(SimpleNamespace(config=config), None, (1, 4), paddle.zeros([1, 4, 8]), 0)
    assert (mask is not None) is masked


@pytest.mark.parametrize(("window", "kernel"), [(10, "masked"), (15, "masked"), (16, "causal"), (None, "causal")])
def test_whole_rows_within_the_window_of_mistral_need_no_mask(
    kernels: Kernels, tmp_path: Path, window: int | None, kernel: str
) -> None:
    with without_cpu_kernels():
        plain, flash = (network(tmp_path, "mistral", flash=flash, num_hidden_layers=1) for flash in (False, True))
        for model in (plain, flash):
            model.config.sliding_window = window
        expected, found = (step(model, batch("mistral")) for model in (plain, flash))
        assert kernels.calls == [kernel]
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5 * np.abs(value).max() + 1e-7, err_msg=name)
        # A prefix is in front of the keys, so the causal mask of the kernel does not fit.
        kernels.calls.clear()
        losses = []
        for model in (plain, flash):
            tuned = attached(model, METHODS["prefix"])
            set_trained(tuned)
            losses.append(float(step(tuned, batch("mistral"))["loss"]))
    assert set(kernels.calls) == {"masked"} and losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_packed_rows_in_32_bits_have_no_kernel(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.half = False
    monkeypatch.setattr(attention_kernels, "in_16_bits", lambda *tensors: False)
    with without_cpu_kernels():
        found = step(network(tmp_path, "llama", flash=True, num_hidden_layers=1), packed_batch("llama"))
    assert kernels.calls == [] and all(np.isfinite(value).all() for value in found.values())


def test_the_fused_rotary_embedding_is_off_while_a_network_generates() -> None:
    layer = SimpleNamespace(use_fused_rope=True, training=True)
    config = SimpleNamespace(tensor_parallel_output=True)
    model = SimpleNamespace(sublayers=lambda include_self: [layer], config=config, eval=lambda: None)
    with mock.patch("paddle_llm.generation.eval_mode.materialized", lambda model: mock.MagicMock()), generating(model):
        assert not layer.use_fused_rope
    assert layer.use_fused_rope


# ---- RMSNorm in the networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (SimpleNamespace(), ""),  # another library's fused_ln, for GPUs
        (SimpleNamespace(why_not=lambda device: ""), ""),
        (
            SimpleNamespace(why_not=lambda device: "no nvcc", fallback=SimpleNamespace(paddle_fused_runs=lambda: True)),
            "",
        ),
        (
            SimpleNamespace(
                why_not=lambda device: "no nvcc", fallback=SimpleNamespace(paddle_fused_runs=lambda: False)
            ),
            "no nvcc",
        ),
    ],
    ids=["another package's", "its own", "Paddle's", "none"],
)
def test_an_rms_norm_is_fused_by_the_installed_kernels(
    card: None, monkeypatch: pytest.MonkeyPatch, module: Any, reason: str
) -> None:
    monkeypatch.setattr(rms_norm, "_fused_ln", lambda: module)
    assert rms_norm.why_not_fused() == reason


# ---- fused_ln -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fused_ln(on_card: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module on a GPU for which its operator has no kernels."""
    import fused_ln

    monkeypatch.setattr(fused_ln, "_library", lambda: (Path("lib.so"), ""))
    monkeypatch.setattr(fused_ln.binding, "why_no_cuda", lambda path: f"no CUDA in {path}")
    fused_ln.fallback._why_not_paddle_fused.cache_clear()
    yield fused_ln
    fused_ln.fallback._why_not_paddle_fused.cache_clear()


def plain_rms_norm(x: Any, shape: Any, weight: Any, epsilon: float) -> tuple[Any, Any]:
    """The signature of Paddle's `F.rms_norm`."""
    inverse = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return x * inverse * weight, inverse.flatten()


def test_the_device_is_that_of_the_tensor_or_of_the_process(fused_ln: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_ln.why_not() == fused_ln.why_not("gpu") == "no CUDA in lib.so"
    x = paddle.ones([2, 8])
    assert fused_ln._device_of(x) == "gpu"
    monkeypatch.setattr(paddle, "in_dynamic_mode", lambda: False)
    assert fused_ln._device_of(x) == "gpu"


def test_an_unknown_place_is_named(fused_ln: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.base.core.Place, "is_gpu_place", lambda self: False)
    assert fused_ln._device_of(paddle.ones([1])) == "Place(cpu)"


@pytest.mark.parametrize("runs", [True, False])
def test_paddles_norm_computes_where_it_runs(fused_ln: Any, monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel")

    called: list[int] = []
    norm = plain_rms_norm if runs else broken
    monkeypatch.setattr(F, "rms_norm", lambda *given: called.append(1) or norm(*given))
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 8)), dtype="float32")
    weight = paddle.full([8], 1.5)
    y, inverse = fused_ln.fused_rms_norm(x, weight, 1e-6)
    expected, exact = plain_rms_norm(x, [8], weight, 1e-6)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(inverse.numpy().ravel(), exact.numpy(), rtol=1e-5)
    assert len(called) == (2 if runs else 1), "tried once, then used if it runs"


def test_a_norm_is_tried_on_the_given_device(fused_ln: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if this process does not use the device."""

    def norm(x: Any, weight: Any) -> Any:
        return plain_rms_norm(x, [8], weight, 0.0)[0]

    places: list[str] = []
    cpu = paddle.CPUPlace
    monkeypatch.setattr(paddle, "CPUPlace", lambda: places.append("cpu") or cpu())
    monkeypatch.setattr(paddle, "CUDAPlace", lambda card: places.append(f"gpu:{card}") or cpu())
    assert fused_ln.fallback.try_out(norm, "gpu") == "" and places == []
    assert fused_ln.fallback.try_out(norm, "cpu") == "" and places == ["cpu"]
    monkeypatch.setattr(paddle.base.core.Place, "is_cpu_place", lambda self: True)
    assert fused_ln.fallback.try_out(norm, "gpu") == "" and places == ["cpu", "gpu:0"]
    assert fused_ln.fallback.fused_rms_norm(paddle.ones([2, 8]), paddle.ones([8]), 0.0, "fp32", "xpu")[0] == (
        "Paddle's plain operations"
    )
