"""Step times: FLOPs, collectives and parts by hand, and published trainings."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.planner.flops import count_parameters, flops_per_token
from paddle_llm.planner.gpus import find_gpu
from paddle_llm.planner.job import Job, Kernels, Method, Precision, Recompute
from paddle_llm.planner.time.communication import ring_of
from paddle_llm.planner.time.kernels import Product, Seconds, Work, kernel_seconds, tile_share
from paddle_llm.planner.time.layers import head_work, layer_work
from paddle_llm.planner.time.machine import FITTED, MEGATRON, Efficiency, Machine
from paddle_llm.planner.time.passes import chunk_passes
from paddle_llm.planner.time.step import mfu, step_time, tokens_per_second

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs" / "models"
A100 = find_gpu("a100-80g")
MACHINE = Machine(A100, Efficiency(peak=0.8, launch=1e-6, bandwidth=0.5, link=0.5))
BF16 = Precision(weights="bfloat16", compute="bfloat16", gradients="float32", master_weights=True)


def job_for(model: str = "llama-7b", layout: Layout | None = None, **settings) -> Job:
    facts = read_model_facts(str(MODELS / model))
    settings = {"seq_length": 1024, "precision": BF16} | settings
    return Job(model=facts, layout=layout or Layout(), **settings)


def product_flops(*works: Work) -> float:
    return sum(product.flops for work in works for product in work.products)


@pytest.mark.parametrize("model", sorted(path.name for path in MODELS.iterdir() if path.name != "quickstart"))
def test_matrix_products_have_the_flops_of_the_parameters(model):
    job = job_for(model, seq_length=512, micro_batch=2)
    layers = [layer_work(job, number) for number in range(job.model.num_hidden_layers)]
    found = product_flops(*(work for layer in layers for work in (layer.forward, layer.backward)), *head_work(job))
    parameters = count_parameters(job.model)
    assert found / (2 * 512) == pytest.approx(6 * (parameters.layers + parameters.head), rel=2e-3)  # without vectors
    plain = replace(job, kernels=Kernels(flash_attention=False))
    one = layer_work(plain, 0)
    attention = product_flops(one.forward, one.backward) - product_flops(layers[0].forward, layers[0].backward)
    assert attention * len(layers) / 1024 == pytest.approx(
        flops_per_token(job.model, 512) - 6 * (parameters.total - parameters.lookups)
    )


def test_tensor_parallel_ranks_divide_products_and_exchange_activations():
    one, eight = layer_work(job_for(), 0), layer_work(job_for(layout=Layout(tensor=8)), 0)
    assert product_flops(eight.forward) == pytest.approx(product_flops(one.forward) / 8)
    message = 1024 * 4096 * 2
    assert (one.forward.reduced, eight.forward.reduced, eight.backward.reduced) == ((), (message,) * 2, (message,) * 2)
    split = layer_work(job_for(layout=Layout(tensor=8, sequence_parallel=True)), 0)
    assert split.forward.gathered == (message,) * 4 and not split.forward.reduced
    assert split.forward.traffic < eight.forward.traffic


def test_frozen_matrices_have_no_weight_gradient():
    full, lora = layer_work(job_for(), 0), layer_work(job_for(method=Method(name="lora", rank=8)), 0)
    forward = product_flops(full.forward)
    assert product_flops(full.backward) == pytest.approx(2 * forward)
    added = product_flops(lora.forward) - forward
    assert 0 < added < 0.01 * forward
    assert product_flops(lora.backward) == pytest.approx(forward + 2 * added)


@pytest.mark.parametrize(("part", "again"), [("none", 0.0), ("full", 1.0)])
def test_recompute_repeats_the_forward_pass(part, again):
    layer = layer_work(job_for(recompute=Recompute(part=part)), 0)
    assert product_flops(layer.backward) == pytest.approx((2 + again) * product_flops(layer.forward))
    assert layer.gradient == layer_work(job_for(), 0).backward


def test_recompute_of_attention_repeats_a_part():
    kernels = Kernels(flash_attention=False)
    times = {
        part: product_flops(layer_work(job_for(kernels=kernels, recompute=Recompute(part=part)), 0).backward)
        for part in ("none", "core_attn", "full_attn", "full")
    }
    assert list(times.values()) == sorted(times.values())
    assert times["core_attn"] - times["none"] == pytest.approx(4 * 1024 * 1024 * 4096)
    assert times["full_attn"] - times["core_attn"] == pytest.approx(2 * 1024 * 4 * 4096**2)


def test_layers_without_recompute_and_frozen_layers_are_counted():
    def backward(**settings):
        return sum(one.backward.products for one in chunk_passes(job_for(**settings), MACHINE))

    none, full = backward(), backward(recompute=Recompute(part="full"))
    half = backward(recompute=Recompute(part="full", kept_layers=frozenset(range(16))))
    assert half == pytest.approx((none + full) / 2)
    last = backward(method=Method(name="freeze", last_layers=8))
    head = job_for(method=Method(name="freeze", last_layers=8))
    assert last < none / 3
    assert last > 8 / 32 * 0.9 * (none - kernel_seconds(head_work(head)[1], head, MACHINE).products)


def test_a_product_takes_the_longer_of_computing_and_moving():
    job = job_for()
    large = Product(128 * 108, 1024, 4096)
    assert tile_share(large, (128, 128), 108) == 1
    computing = large.flops / (312e12 * 0.8)
    assert kernel_seconds(Work((large,)), job, MACHINE).products == pytest.approx(computing + 5e-6 + 8 * 4e-6)
    thin = Product(1, 8192, 8192)
    moving = thin.elements * 2 / A100.memory_bandwidth
    assert kernel_seconds(Work((thin,)), job, MACHINE).products == pytest.approx(
        max(moving, thin.flops / (312e12 * 0.8 * tile_share(thin, (128, 128), 108))) + 9e-6
    )


@pytest.mark.parametrize(
    ("rows", "columns", "share"),
    [(128, 128, 1 / 108), (128 * 109, 128, 109 / 216), (129, 128 * 54, 129 * 54 / (128 * 108))],
)
def test_edges_of_tiles_and_the_last_wave_are_lost(rows, columns, share):
    assert tile_share(Product(rows, columns, 64), (128, 128), 108) == pytest.approx(share)


def test_hopper_computes_larger_tiles():
    assert Machine(find_gpu("h100"), FITTED["b200"]).tile == (256, 128)
    assert tile_share(Product(128, 128, 64), (256, 128), None) == 0.5


def test_devices_wait_for_the_host_if_kernels_are_short():
    seconds = Seconds(products=1.0, attention=0.5, elementwise=0.25, collectives=0.25, host=3.0)
    assert (seconds.device, seconds.total) == (2.0, 3.0)
    assert seconds.plus(seconds).times(2).total == 12.0


def test_a_collective_is_as_fast_as_its_slowest_link():
    inside = ring_of(job_for(layout=Layout(tensor=8)), "tensor", MACHINE)
    assert inside.bandwidth == 300e9 * 0.5 and not inside.crosses
    assert inside.all_reduce(8e9) - inside.start == pytest.approx(2 * 7 / 8 * 8e9 / 150e9)
    assert inside.gather(8e9) - inside.start == pytest.approx(7 / 8 * 8e9 / 150e9)
    wide = ring_of(job_for(layout=Layout(tensor=16)), "tensor", MACHINE)
    assert wide.bandwidth == 8 * 25e9 * 0.5 and wide.crosses  # the ports of eight ranks
    data = ring_of(job_for(layout=Layout(data=4, tensor=8)), "data", MACHINE)
    assert data.bandwidth == 25e9 * 0.5  # one rank on each machine
    pairs = ring_of(job_for(layout=Layout(data=8, tensor=4)), "data", MACHINE)
    assert pairs.bandwidth == 2 * 25e9 * 0.5
    alone = ring_of(job_for(), "data", MACHINE)
    assert alone.all_reduce(1e9) == alone.gather(1e9) == alone.send(1e9) == alone.rooted(1e9, 3) == 0


def test_the_parts_add_up_and_give_tokens_and_mfu():
    job = job_for(layout=Layout(data=2, sharding=2, sharding_stage=1, tensor=2, pipeline=4), accumulation=8)
    time = step_time(job, MACHINE)
    assert time.seconds == pytest.approx(sum(time.parts().values()))
    assert all(seconds >= 0 for seconds in time.parts().values())
    speed = tokens_per_second(job, time)
    assert speed == pytest.approx(4 * 8 * 1024 / time.seconds)
    assert mfu(job, time, MACHINE) == pytest.approx(flops_per_token(job.model, 1024) * speed / 32 / 312e12)


def test_more_micro_batches_wait_less_and_virtual_stages_too():
    waits = []
    for layout, accumulation in (
        (Layout(pipeline=4), 8),
        (Layout(pipeline=4), 32),
        (Layout(pipeline=4, virtual_stages=2), 32),
    ):
        time = step_time(job_for(layout=layout, accumulation=accumulation), MACHINE)
        waits.append(time.pipeline_wait / time.seconds)
    assert waits == sorted(waits, reverse=True)
    assert 0.2 < waits[0] < 0.35  # equal stages: 3 / 11


def test_sharding_stages_exchange_what_the_table_of_the_documentation_says():
    def exchanged(stage, **settings):
        layout = Layout(sharding=8, sharding_stage=stage) if stage else Layout(data=8)
        return step_time(job_for(layout=layout, **settings), MACHINE)

    plain, one, two, three = (exchanged(stage) for stage in range(4))
    assert plain.reduction > 0 == plain.broadcast
    assert one.broadcast > 0 and one.reduction < plain.reduction
    assert one.update < plain.update
    assert two.reduction < one.reduction and two.broadcast == one.broadcast  # hidden behind the backward pass
    assert three.broadcast == 0
    on_cpu = Kernels(device="cpu")
    accumulated = exchanged(2, accumulation=4, kernels=on_cpu).reduction
    assert accumulated == pytest.approx(4 * exchanged(2, kernels=on_cpu).reduction)  # nothing hides it
    assert exchanged(3, kernels=on_cpu).weights > 0


def test_offload_moves_the_states_over_the_host_link():
    there = step_time(job_for(offload_optimizer=True), MACHINE).update - step_time(job_for(), MACHINE).update
    parameters = count_parameters(job_for().model).total
    assert there == pytest.approx(2 * 12 * parameters / 25e9)


@pytest.mark.parametrize("table", ["narayanan", "korthikanti"])
def test_published_trainings_take_the_estimated_time(table, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows = list(getattr(import_module("planner_published"), table)())[
        :7
    ]  # the largest pipelines take longer to simulate
    machine = Machine(A100, FITTED["a100-80g"], MEGATRON)
    errors = [min(step_time(job, machine).seconds for job in jobs) / seconds - 1 for jobs, seconds in rows]
    assert sum(map(abs, errors)) / len(errors) < 0.10
    assert max(map(abs, errors)) < 0.15
