"""Sharding stage 3 gives the results of stage 2 bit for bit, and a rank holds its share of the weights and one unit.

test_layouts.py compares stage 2 with one process; this file also compares layouts with stage 3 with one process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import run_ranks
from tests.distributed.stage3_runs import MICRO_BATCHES, STEPS, Run, both_stages
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import Toy, config, make_trainer, numbers, rows, weights

LAYOUT = Layout(sharding=2, sharding_stage=3)


def _recompute(granularity: str = "full", reentrant: bool = False) -> dict:
    return {"recompute": True, "recompute_granularity": granularity, "recompute_use_reentrant": reentrant}


RUNS = {
    "llama": Run(),
    "chatglm": Run("chatglm"),
    "chatglm2": Run("chatglm_v2"),
    "bloom, tied": Run("bloom"),
    "tied": Run(overrides={"tie_word_embeddings": True}),
    "evaluation between micro-batches": Run(evaluate=True),
    "some parameters frozen": Run(frozen=("q_proj", "layers.1", "embed")),
    "first layers frozen": Run(frozen=("embed", "layers.0")),
    "frozen, recomputed": Run(frozen=("q_proj", "layers.1"), fields=_recompute()),
    **{f"{kind}, reentrant {old}": Run(fields=_recompute(kind, old)) for kind in ("full", "full_attn", "core_attn") for old in (False, True)},
    "bloom, recomputed": Run("bloom", fields=_recompute()),
    "chatglm, recomputed": Run("chatglm", fields=_recompute()),
    "chatglm2, recomputed": Run("chatglm_v2", fields=_recompute()),
    "a layer that is never called": Run(unused=True),
    "offload": Run(offload=True, evaluate=True),
    "prefetch": Run(prefetch=True),
    "prefetch, evaluation": Run("bloom", prefetch=True, evaluate=True),
    "prefetch, frozen, recomputed": Run(prefetch=True, frozen=("embed", "layers.0"), fields=_recompute()),
    "prefetch, offload": Run("chatglm_v2", prefetch=True, offload=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the results of both stages of all runs, by rank."""
    folder = tmp_path_factory.mktemp("runs")
    for name, run in RUNS.items():
        run.write(folder / name)
    return run_ranks(both_stages, 2, RUNS, folder, LAYOUT)


@pytest.mark.parametrize("name", RUNS)
def test_results_equal_those_of_stage_2_bit_for_bit(name, ranks):
    for rank in ranks:
        two, three = rank[name]
        assert len(three["losses"]) == STEPS * MICRO_BATCHES and three["losses"] == two["losses"]
        assert three["evaluations"] == two["evaluations"] and bool(three["evaluations"]) == RUNS[name].evaluate
        assert three["weights"].keys() == two["weights"].keys() and len(three["weights"]) > 10
        for key, value in two["weights"].items():
            np.testing.assert_array_equal(three["weights"][key], value, err_msg=key)
    assert ranks[0][name][1]["losses"] != ranks[1][name][1]["losses"]  # they see different data


@pytest.mark.parametrize("name", RUNS)
def test_a_rank_holds_its_own_weights_and_one_unit(name, ranks):
    """The weights are counted in every forward pass and at every gradient. A unit is a block, or a layer outside of blocks."""
    for rank in ranks:
        two, three = rank[name]
        assert three["checks"] > 100 and two["held"] == two["all"]
        if RUNS[name].prefetch:
            assert three["own"] + three["unit"] < three["held"] <= three["own"] + three["units"]
        else:
            assert three["held"] == three["own"] + three["unit"]
        assert set(three["rest"]) == {three["own"]}
    if not RUNS[name].offload:
        assert sum(rank[name][1]["own"] for rank in ranks) == ranks[0][name][1]["all"]


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.prefetch])
def test_weights_are_prefetched(name, ranks):
    """From the second pass on, all units but the first are prefetched: at least three in every forward and backward pass."""
    passes = 2 * STEPS * MICRO_BATCHES
    for rank in ranks:
        assert rank[name][1]["ahead"] >= 3 * (passes - 2)


SHORT = {"max_steps": 6, "logging_steps": 1, "eval_steps": 3, "save_steps": 3, "learning_rate": 1e-3, "adam_epsilon": 1e-4}  # fmt: skip


def _train(folder: Path, layout: Layout, changes: dict, resume: str | None = None) -> None:
    """Run one rank of a short run in `folder`/output, and save the merged model like `run_pretrain.py`."""
    from paddle_llm.checkpoint.merged_model import save_merged_model
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    trainer = make_trainer(config(folder, **(SHORT | changes)), layout)
    trainer.train(resume)
    save_merged_model(trainer.model, layout, folder / "output" / "model")


def _run(folder: Path, layout: Layout, resume: str | None = None, **changes) -> tuple[list[dict], dict]:
    """Return the rows of metrics and the weights of the merged model."""
    write_llama(folder / "llama", vocab_size=129, num_hidden_layers=2, num_key_value_heads=2)
    changes = {"gradient_accumulation_steps": 8 // layout.data_world_size, "max_grad_norm": 0.5} | changes
    run_ranks(_train, layout.world_size, folder, layout, changes, resume)
    return rows(folder / "output"), load_file(folder / "output" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("one"), Layout())


LAYOUTS = [
    (LAYOUT, {}),
    (
        Layout(sharding=2, sharding_stage=3, tensor=2, sequence_parallel=True),
        {"sequence_parallel": True} | _recompute(),
    ),
    (Layout(data=2, sharding=2, sharding_stage=3), {}),
]


@pytest.mark.parametrize("layout, changes", LAYOUTS, ids=[str(layout) for layout, _ in LAYOUTS])
def test_rows_and_model_of_a_layout_equal_those_of_one_process(layout, changes, tmp_path, one_process):
    """The vocabulary of 129 is padded for tensor parallelism, and clipping is active."""
    (found, model), (expected, expected_model) = _run(tmp_path, layout, **changes), one_process
    for key, limit in (("loss", 2e-6), ("grad_norm", 2e-5), ("eval_loss", 2e-6)):
        values, reference = ([row[key] for row in table if key in row] for table in (found, expected))
        np.testing.assert_allclose(values, reference, rtol=limit, err_msg=key)
    assert model.keys() == expected_model.keys()
    for name, value in expected_model.items():
        assert np.linalg.norm(model[name] - value) <= 2e-5 * np.linalg.norm(value), name


def test_resume_is_exact_bit_for_bit(tmp_path):
    _, model = _run(tmp_path, LAYOUT)
    expected = numbers(tmp_path / "output")
    _, again = _run(tmp_path, LAYOUT, resume=str(tmp_path / "output" / "checkpoint-3"))
    assert numbers(tmp_path / "output") == expected
    assert all(np.array_equal(again[name], value) for name, value in model.items())


def _best_model(folder: Path, layout: Layout) -> tuple[str, dict, int, int]:
    """Return the best checkpoint, the weights after training, and the numbers of elements held and owned after it."""
    from paddle_llm.checkpoint.format.reader import Reader
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.parallel.zero.stage3 import held_weight_elements

    start_process("cpu", layout.world_size)
    # The greatest loss counts as the best, so that the best checkpoint is not the last one.
    changes = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer(config(folder, **(SHORT | changes)), layout)
    trainer.train()
    sharded = trainer.sharded_weights
    held = held_weight_elements(trainer.model)
    own = sum(p.size for p in trainer.model.parameters() if sharded.owner(p) == sharded.rank)
    with sharded.whole():
        found = weights(trainer.model)
    best = Path(trainer.state.best_model_checkpoint)
    with Reader(best) as reader:
        saved = {name: reader.tensor(f"weights/{name}") for name in found}
    return best.name, {name: np.abs(found[name] - saved[name]).max() for name in found}, held, own


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    config(tmp_path)
    for best, differences, held, own in run_ranks(_best_model, 2, tmp_path, LAYOUT):
        assert best == "checkpoint-3" and len(differences) > 20
        assert set(differences.values()) == {0.0} and held == own


def _skip(folder: Path, layout: Layout) -> list[int]:
    """Return the skipped steps of a run whose fourth step is NaN on one rank."""
    from paddle_llm.parallel.process.start import start_process

    def poison(layer, inputs, output):
        bad = trainer.state.global_step == 3 and trainer.args.process_index == 1 and layer.training
        return output * float("nan") if bad else output

    start_process("cpu", layout.world_size)
    trainer = make_trainer(config(folder, **(SHORT | {"nan_policy": "skip", "save_steps": 100})), layout)
    trainer.model.llama.embed_tokens.register_forward_post_hook(poison)
    skipped = []
    check = trainer.nan_guard.check

    def record(norm):
        skipped.extend([] if np.isfinite(norm) else [trainer.state.global_step + 1])
        check(norm)

    trainer.nan_guard.check = record
    trainer.train()
    return skipped


def test_a_skipped_update_does_not_change_the_weights(tmp_path):
    found = {}
    for stage in (2, 3):
        config(tmp_path / str(stage))
        layout = Layout(sharding=2, sharding_stage=stage)
        assert run_ranks(_skip, 2, tmp_path / str(stage), layout) == [[4], [4]]
        found[stage] = [(row.get("loss"), row.get("eval_loss")) for row in rows(tmp_path / str(stage) / "output")]
    assert found[3] == found[2] and len(found[3]) >= 7


def _weights_seen_by_a_script(folder: Path, layout: Layout) -> dict:
    """Return the weights that a script sees after a training, or the messages that it gets."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    trainer = make_trainer(config(folder, max_steps=1, do_eval=False), layout)
    before = weights(trainer.model)
    trainer.train()
    found: dict = {}
    for name, layer in (("network", trainer.model), ("one layer", trainer.model.llama.layers[0].mlp)):
        try:
            layer.state_dict()
            found[name] = None
        except UserError as error:
            found[name] = str(error)
    sharded = trainer.sharded_weights
    with sharded.whole(keep=sharded.rank == 0):
        if sharded.rank == 0:
            found["shapes"] = {name: value.shape for name, value in weights(trainer.model).items()}
    found["evaluation"] = trainer.evaluate(Toy(8))["eval_loss"]
    found["expected"] = {name: value.shape for name, value in before.items()}
    return found


def test_a_script_gets_whole_weights_or_a_message(tmp_path):
    config(tmp_path)
    first, second = run_ranks(_weights_seen_by_a_script, 2, tmp_path, LAYOUT)
    for rank in (first, second):
        assert "trainer.sharded_weights.whole()" in rank["network"] and rank["network"] == rank["one layer"]
        assert np.isfinite(rank["evaluation"])
    assert first["shapes"] == first["expected"] and first["evaluation"] == second["evaluation"]


def _bytes(folder: Path, layout: Layout) -> dict[str, int]:
    """Return the bytes of Paddle's host allocator: after building, after training, and the peak of the training."""
    from paddle.base import core
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.parallel.process.start import start_process

    class Peak(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:  # the moments exist
                core.host_memory_stat_reset_peak_value("Allocated", 0)

        def on_step_end(self, args, state, control, **kwargs):
            found["rest"] = core.host_memory_stat_current_value("Allocated", 0)
            found["peak"] = core.host_memory_stat_peak_value("Allocated", 0)

    found: dict[str, int] = {}
    start_process("cpu", layout.world_size)
    trainer = make_trainer(config(folder, max_steps=3, do_eval=False, save_steps=100), layout)
    trainer.add_callback(Peak())
    trainer.train()
    sharding = trainer.optimizer._inner_opt
    found["own"] = 4 * sum(p.size for p in sharding._rank2params[sharding._sharding_rank])
    found["all"] = 4 * sum(p.size for p in trainer.model.parameters())
    if trainer.sharded_weights is not None:
        found["unit"] = 4 * max(sum(p.size for p in unit.parameters) for unit in trainer.sharded_weights.units)
    return found


def test_less_memory_is_allocated_than_with_stage_2(tmp_path):
    """Between steps the weights of other owners are freed, and the peak of a step is lower by them, except for a unit."""
    write_llama(tmp_path / "llama", num_hidden_layers=8)
    two = run_ranks(_bytes, 2, tmp_path, Layout(sharding=2, sharding_stage=2))
    three = run_ranks(_bytes, 2, tmp_path, LAYOUT)
    for before, now in zip(two, three, strict=True):
        others = now["all"] - now["own"]
        assert before["rest"] - now["rest"] == pytest.approx(others, rel=0.02)
        assert before["peak"] - now["peak"] >= others - now["unit"]
