"""What a training does on a GPU besides its kernels: loss, metrics, gradients in 32 bits, sharded weights, rank set-up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llm.checkpoint.training_state import collect
from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.data.counted_batches import LABELLED_POSITIONS
from paddle_llm.export.verification.engines import in_paddle
from paddle_llm.generation.evaluation import evaluate
from paddle_llm.generation.evaluation.measure import peak_memory
from paddle_llm.models.loss import CausalLMLoss
from paddle_llm.models.patches.shared import cpu_switch
from paddle_llm.parallel.zero import buckets as gradient_buckets
from paddle_llm.parallel.zero import stage3 as sharded_weights
from paddle_llm.parallel.zero.stage2 import default_bucket_bytes
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.peft.methods import adalora
from paddle_llm.rehearse import oracle
from paddle_llm.training import rollback, sharding
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.step import nan_guard
from paddle_llm.training.step.loss_scaling import unscale_main_gradients
from paddle_llm.training.trainers import finetune_trainer
from paddle_llm.training.trainers.finetune_trainer import FinetuneTrainer
from tests.helpers.gpu.kernels import network, without_cpu_kernels
from tests.rehearse.cases import make_case

# ---- one process ----------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_cpu(on_card: None) -> None:
    """The check for NaN, which a CPU's softmax needs, is not used."""
    logits = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 3, 5)), dtype="float32")
    labels = paddle.to_tensor([[1, 4, -100]])
    loss = CausalLMLoss(SimpleNamespace(vocab_size=5, tensor_parallel_degree=1, tensor_parallel_output=True))
    exact = paddle.nn.functional.cross_entropy(logits[0, :2], labels[0, :2])
    np.testing.assert_allclose(float(loss(logits, labels)), float(exact), rtol=1e-6)
    assert np.isnan(float(loss(logits * float("nan"), labels)))


def test_peak_memory_is_that_of_the_card(card: None) -> None:
    meter = Meter(1.0, 1.0, 1)
    meter.end_step(1, 2.0, labels=1, skipped=False)
    assert meter.row(grad_norm=1.0, consumed_samples=1)["peak_memory_bytes"] == 5 << 30


def test_kernels_for_cpus_are_not_installed(card: None, tmp_path: Path) -> None:
    with without_cpu_kernels():
        network(tmp_path, "llama", flash=True)
        assert not cpu_switch.is_enabled()


def test_an_export_names_the_device(card: None) -> None:
    assert in_paddle._device() == "gpu"


def test_an_evaluation_reports_the_memory_of_the_card(card: None) -> None:
    assert evaluate._device() == "gpu"
    assert peak_memory(evaluate._device()) == 5 << 30


def test_a_checkpoint_copies_tensors_of_the_card(on_card: None) -> None:
    """Memory of a card cannot be read in place."""
    weight = paddle.to_tensor([[1.0, 2.0]])
    found = collect._on_host(weight)
    weight.set_value(paddle.zeros_like(weight))
    np.testing.assert_array_equal(found, [[1.0, 2.0]])


@pytest.mark.parametrize("found", [True, False])
def test_the_scaler_distinguishes_an_overflow_from_nan(found: bool) -> None:
    trainer = SimpleNamespace(do_grad_scaling=True, scaler=SimpleNamespace(_found_inf=paddle.to_tensor([found])))
    assert nan_guard._scaler_overflowed(trainer) is found


def test_numbers_of_labelled_positions_are_rounded_up(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of many sizes would fragment the memory of a GPU; the loader rounds their number up."""
    monkeypatch.setattr(finetune_trainer, "find_criterion", lambda model: "criterion")
    trainer = SimpleNamespace(layout=Layout(), model=None)
    sizes = set()
    for labelled in (3, 200, 257):
        labels = np.full((1, 1024), -100)
        labels[0, :labelled] = 1
        batches = FinetuneTrainer.counted_batches(trainer, lambda samples, labels=labels: {"labels": labels})
        sizes.add(len(batches([])[LABELLED_POSITIONS]))
    assert sizes == {256, 512}


def test_adalora_refuses_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    attachment = SimpleNamespace(method=SimpleNamespace(name="adalora"))
    monkeypatch.setattr(adalora, "active_attachment", lambda model: attachment)
    with pytest.raises(UserError, match="AdaLoRA does not support --fp16"):
        adalora.add_budget_callback(SimpleNamespace(model=None, args=SimpleNamespace(fp16=True)))


# ---- gradients in 32 bits (main_grad) -------------------------------------------------------------------------------


@pytest.fixture
def parameter() -> Any:
    """A parameter with a gradient in `main_grad` and an empty `grad`, as `MixPrecisionLayer` leaves it."""
    made = paddle.create_parameter([2], "float32")
    made.main_grad = paddle.to_tensor([1.0, 2.0])
    return made


def test_the_gradient_is_the_one_in_32_bits(parameter: Any) -> None:
    assert gradient_buckets.gradient_of(parameter) is parameter.main_grad


@pytest.mark.parametrize(("last", "found"), [(2.0, False), (float("inf"), True)])
def test_the_scale_is_taken_out_of_gradients_in_32_bits(parameter: Any, last: float, found: bool) -> None:
    parameter.main_grad = paddle.to_tensor([1.0, last])
    without = paddle.create_parameter([1], "float32")
    without.main_grad = None
    scaler = SimpleNamespace(_enable=True, _scale=paddle.to_tensor([4.0]))
    unscale_main_gradients(scaler)
    scaler._unscale(SimpleNamespace(_parameter_list=[parameter, without], _param_groups=[parameter, without]))
    assert bool(scaler._found_inf) is found and (found or parameter.main_grad.tolist() == [0.25, 0.5])


def test_buckets_are_as_large_as_gradients_in_32_bits() -> None:
    weight = SimpleNamespace(size=1 << 22, ndim=2, element_size=lambda: 2)
    half = default_bucket_bytes([weight])
    weight.main_grad = None
    assert default_bucket_bytes([weight]) == 2 * half


def test_a_gradient_in_32_bits_is_replaced_and_freed(parameter: Any) -> None:
    reduced = paddle.to_tensor([3.0, 4.0])
    gradient_buckets._set_gradient(parameter, reduced)
    assert parameter.main_grad is reduced and parameter._grad_ivar() is None
    gradient_buckets._free(parameter)
    assert parameter.main_grad is None


# ---- sharding stage 3 -----------------------------------------------------------------------------------------------


class Held:
    """A tensor with a given place that records the methods that are called."""

    def __init__(self, place: str, done: list[str]):
        self._done = done
        self.place = SimpleNamespace(
            is_gpu_place=lambda: place == "gpu", is_cuda_pinned_place=lambda: place == "pinned"
        )

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Held:
            self._done.append(name)
            return self

        return call


def test_weights_are_offloaded_to_pinned_memory_and_back() -> None:
    done: list[str] = []
    sharded_weights._on_host(Held("gpu", done))
    sharded_weights._on_device(Held("pinned", done))
    assert done == ["pin_memory", "cuda"]


def test_weights_to_be_saved_are_gathered_in_host_memory() -> None:
    """One weight at a time; the rank's own weights are not moved."""
    done: dict[str, list[str]] = {"own": [], "other": []}
    sharded = ShardedWeights.__new__(ShardedWeights)
    sharded._parameters = {name: Held("gpu", log) for name, log in done.items()}
    sharded._held, sharded.rank = {}, 0
    sharded.owner = lambda parameter: int(parameter is sharded._parameters["other"])
    sharded._gather = sharded._release = lambda *_: None
    with sharded.whole():
        assert done == {"own": [], "other": ["detach", "cpu", "_share_buffer_to"]}


@pytest.mark.parametrize("stage", [2, 3])
def test_stage_3_prefetches_where_collectives_are_asynchronous(
    card: None, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(sharding, "GradNormReader", lambda *_: "reader")
    monkeypatch.setattr(sharding, "ShardedGradients", lambda *_, **named: "gradients")
    monkeypatch.setattr(sharding, "ShardedWeights", lambda *_, **named: given.update(named) or "weights")
    applied = sharding.apply_sharding(
        None,
        None,
        Layout(sharding=2, sharding_stage=stage),
        guard=SimpleNamespace(guard=lambda optimizer: None),
        check_norm=lambda norm: None,
        bucket_mb=-1,
        offload_weights=False,
    )
    assert applied == ("reader", "gradients", "weights" if stage == 3 else None)
    assert given.get("prefetch") is (True if stage == 3 else None)


def test_a_rollback_frees_the_memory_of_the_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(paddle.device.cuda, "empty_cache", lambda: freed.append(True))
    rollback._free_memory()
    assert freed == [True]


# ---- ranks and rehearsal --------------------------------------------------------------------------------------------


def test_a_comparison_on_gpus_uses_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(oracle, "run_ranks", lambda *_, **named: given.update(named) or [])
    oracle.run_case(make_case(tmp_path, Layout(), device="gpu"), env={"FLAGS_x": "1"})
    assert given["device"] == "gpu" and given["env"] == {"NVIDIA_TF32_OVERRIDE": "0", "FLAGS_x": "1"}
