"""The fused RMSNorm operator in Paddle: values, gradients, views, recompute, AMP, accumulation, static graphs, saved programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fused_ln
import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

CUSTOM_OPS = Path(__file__).resolve().parents[2] / "custom_ops"
EPSILON = 1e-5
LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}

pytestmark = pytest.mark.usefixtures("own_operator")


def values(*shape: int, dtype: str = "float32", seed: int = 0, frozen: bool = False) -> paddle.Tensor:
    tensor = paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)
    tensor.stop_gradient = frozen
    return tensor


def norm(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    return fused_ln.fused_rms_norm(x, weight, EPSILON)[0]


def formula(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    """Return RMSNorm in float64 with Paddle's gradients."""
    x, weight = x.astype("float64"), weight.astype("float64")
    return x * paddle.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def results(function, x: paddle.Tensor, weight: paddle.Tensor) -> list[np.ndarray]:
    """Return y, and the gradients of a weighted sum of y by those of x and weight that are not frozen."""
    x.clear_grad(), weight.clear_grad()
    y = function(x, weight)
    if not (x.stop_gradient and weight.stop_gradient):
        (y.astype("float64") * values(*y.shape, seed=9, frozen=True).astype("float64")).sum().backward()
    found = [y, x.grad, weight.grad]
    return [tensor.astype("float64").numpy() for tensor in found if tensor is not None]


def assert_close(found: list[np.ndarray], exact: list[np.ndarray], limit: float) -> None:
    assert len(found) == len(exact)
    for one, two in zip(found, exact, strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, atol=limit * np.abs(two).max(initial=0), rtol=0)


@pytest.mark.parametrize("weight_type", ["float32", "x"])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", [(2, 5, 48), (33,), (7, 3), (0, 8), (2, 3, 2, 1000)], ids=str)
def test_values_and_gradients_equal_float64(shape, dtype, weight_type):
    x = values(*shape, dtype=dtype)
    weight = values(shape[-1], dtype=dtype if weight_type == "x" else "float32", seed=1)
    y, invvar = fused_ln.fused_rms_norm(x, weight, EPSILON)
    assert (y.dtype, invvar.dtype) == (weight.dtype, paddle.float32)
    assert tuple(invvar.shape) == shape[:-1] and invvar.stop_gradient
    assert_close(results(norm, x, weight), results(formula, x, weight), LIMITS[dtype])


@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_frozen_tensors_get_no_gradient(frozen):
    x = values(4, 16, frozen=frozen in ("x", "both"))
    weight = values(16, seed=1, frozen=frozen in ("weight", "both"))
    found = results(norm, x, weight)
    assert len(found) == {"x": 2, "weight": 2, "both": 1}[frozen]
    assert_close(found, results(formula, x, weight), LIMITS["float32"])


@pytest.mark.parametrize(
    "view", [lambda x: x.t(), lambda x: x[1:7, 3:15], lambda x: x[::2], lambda x: x.expand([3, *x.shape])]
)
def test_views_are_accepted(view):
    x = values(16, 24)
    hidden = view(x).shape[-1]
    assert_close(
        results(lambda x, w: norm(view(x), w), x, values(hidden, seed=1)),
        results(lambda x, w: formula(view(x), w), x, values(hidden, seed=1)),
        LIMITS["float32"],
    )


def test_the_gradient_may_be_a_view():
    x, weight = values(6, 8), values(8, seed=1)
    assert_close(
        results(lambda x, w: norm(x, w).t(), x, weight), results(lambda x, w: formula(x, w).t(), x, weight), 1e-6
    )


def test_the_rounding_of_llama_equals_that_of_the_unfused_model():
    x, weight = values(64, 96, dtype="bfloat16"), values(96, dtype="bfloat16", seed=1)
    wide = x.astype("float32")
    normed = (paddle.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * wide).astype("bfloat16")
    unfused = (normed * weight).astype("float32").numpy()
    like = fused_ln.fused_rms_norm(x, weight, EPSILON, rounding="llama")[0].astype("float32").numpy()
    assert (like == unfused).mean() > 0.999  # a bit may differ if the mean itself is rounded differently
    assert (norm(x, weight).astype("float32").numpy() != unfused).mean() > 0.05


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")], ids=str)
def test_y_has_the_type_of_the_weight(types):
    """The unfused layer of PaddleNLP's LLaMA behaves the same."""
    from paddlenlp.transformers import LlamaConfig
    from paddlenlp.transformers.llama.modeling import LlamaRMSNorm

    x, weight = values(4, 16, dtype=types[0]), values(16, dtype=types[1], seed=1)
    layer = LlamaRMSNorm(LlamaConfig(hidden_size=16))
    layer.weight = paddle.base.framework.EagerParamBase.from_tensor(weight)
    y = norm(x, weight)
    assert y.dtype == layer(x).dtype == weight.dtype
    assert_close(results(norm, x, weight), results(formula, x, weight), LIMITS["bfloat16"])
    assert (x.grad.dtype, weight.grad.dtype) == (x.dtype, weight.dtype)


def test_no_gradient_passes_through_the_inverse_rms():
    x, weight = values(4, 16), values(16, seed=1)
    _, dx, _ = results(lambda x, w: norm(x, w), x, weight)
    x.clear_grad()
    y, invvar = fused_ln.fused_rms_norm(x, weight, EPSILON)
    ((y * values(4, 16, seed=9, frozen=True)).sum() + invvar.sum()).backward()
    np.testing.assert_array_equal(x.grad.numpy(), dx.astype(np.float32))
    _, invvar = fused_ln.fused_rms_norm(x, weight, EPSILON)
    x.clear_grad()
    (x * invvar.unsqueeze(-1)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(invvar.unsqueeze(-1).numpy(), [4, 16]))


def test_results_are_the_same_bits_each_time():
    x, weight = values(300, 257), values(257, seed=1)
    first, second = results(norm, x, weight), results(norm, x, weight)
    assert all((one == two).all() for one, two in zip(first, second, strict=True))


def test_gradients_accumulate():
    x, weight = values(5, 16), values(16, seed=1)
    _, dx, dweight = results(norm, x, weight)
    (norm(x, weight) * values(5, 16, seed=9, frozen=True)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), (2 * dx).astype(np.float32))
    np.testing.assert_array_equal(weight.grad.numpy(), (2 * dweight).astype(np.float32))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recompute_gives_the_same_bits(reentrant):
    x, weight = values(5, 16), values(16, seed=1)
    plain = results(norm, x, weight)
    again = results(lambda x, w: recompute(norm, x, w, use_reentrant=reentrant), x, weight)
    assert all((one == two).all() for one, two in zip(plain, again, strict=True))


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_amp_keeps_the_types_of_gradients(level):
    """With AMP x is bf16 and the weight fp32 (O1) or bf16 (O2). y has the type of the weight, each gradient that of its tensor."""
    x, weight = values(4, 16), values(16, dtype="float32" if level == "O1" else "bfloat16", seed=1)
    with paddle.amp.auto_cast(level=level, dtype="bfloat16"):
        short = x.astype("bfloat16")
        y = norm(short, weight)
    assert y.dtype == weight.dtype
    y.astype("float32").sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (paddle.float32, weight.dtype)
    exact = formula(short.detach(), weight.detach()).numpy()
    assert_close([y.astype("float64").numpy()], [exact], LIMITS["bfloat16"])


@pytest.mark.parametrize("full_graph", [True, False], ids=["ast", "sot"])
def test_to_static_computes_the_same(full_graph):
    x, weight = values(5, 16), values(16, seed=1)

    def doubled(x, weight):
        return norm(x * 2.0, weight)

    found = results(paddle.jit.to_static(doubled, full_graph=full_graph), x, weight)
    assert_close(found, results(lambda x, w: formula(x * 2.0, w), x, weight), LIMITS["float32"])


class Block(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.weight = self.create_parameter([16])
        self.linear = paddle.nn.Linear(16, 4)

    def forward(self, x):
        return self.linear(norm(x, self.weight))


def saved(folder: Path) -> tuple[Block, str]:
    block = Block()
    block.eval()
    spec = [paddle.static.InputSpec([None, 16], "float32", "x")]
    paddle.jit.save(paddle.jit.to_static(block, input_spec=spec, full_graph=True), str(folder / "block"))
    assert "pllm_rms_norm" in (folder / "block.json").read_text()
    return block, str(folder / "block")


def test_a_saved_program_computes_the_same(tmp_path):
    (block, path), x = saved(tmp_path), values(3, 16, frozen=True)
    loaded = paddle.jit.load(path)
    np.testing.assert_allclose(loaded(x).numpy(), block(x).numpy(), atol=1e-6, rtol=0)
    assert tuple(loaded(values(7, 16)).shape) == (7, 4)


def in_a_process(code: str) -> str:
    """Return the stdout of a new process that can import fused_ln."""
    code = f"import sys; sys.path.insert(0, {str(CUSTOM_OPS)!r}); import paddle, fused_ln\n{code}"
    # KMP_INIT_AT_FORK: scikit-learn sets it, and Paddle's matrix products then hang in a forked child.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    settings = kept | {"GLOG_minloglevel": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_fused_ln_is_enough_to_load_a_saved_program(tmp_path):
    block, path = saved(tmp_path)
    printed = in_a_process(f"print(float(paddle.jit.load({path!r})(paddle.ones([2, 16])).sum()))")
    assert float(printed) == pytest.approx(float(block(paddle.ones([2, 16])).sum()), abs=1e-5)


def test_a_forked_child_can_compute():
    """For example a worker of a data loader. With a separate thread pool it would wait forever."""
    printed = in_a_process(
        """
import os, signal
norm = lambda: float(fused_ln.fused_rms_norm(paddle.ones([1024, 1024]), paddle.ones([1024]), 0.0)[0].sum())
norm()
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(0 if norm() == 1024 * 1024 else 1)
print(os.waitpid(child, 0)[1])
"""
    )
    assert printed == "0\n"


@pytest.mark.parametrize("shapes", [((4, 16), (8,)), ((4, 0), (0,)), ((), (1,)), ((4, 8), (1, 8))], ids=str)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"Use x \[..., hidden\] and weight \[hidden\]"):
        norm(*(paddle.ones(shape) for shape in shapes))


@pytest.mark.parametrize("shapes", [((4, 16), (8,)), ((4, 0), (0,))], ids=str)
def test_the_operator_itself_refuses_such_shapes(shapes):
    """A saved program calls the operator without the Python function."""
    with pytest.raises(Exception, match=r"weight has \d+ elements. Use x \[..., hidden\] and weight \[hidden\]"):
        paddle._C_ops._run_custom_op("pllm_rms_norm", *(paddle.ones(shape) for shape in shapes), 1e-6, 0, True)


def test_invalid_arguments_are_refused():
    x, weight = values(4, 8), values(8)
    with pytest.raises(Exception, match="epsilon must be 0 or more"):
        fused_ln.fused_rms_norm(x, weight, -1.0)
    with pytest.raises(ValueError, match="rounding='bf16' is unknown. Use one of fp32, llama."):
        fused_ln.fused_rms_norm(x, weight, EPSILON, "bf16")
    with pytest.raises(TypeError, match="paddle.int32 is not supported"):
        norm(x.astype("int32"), weight)
