"""Fine-tuning jobs of finetune_generation.py on real ranks: methods, resume, saved files, exact losses."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.config.run_config import SCORES
from paddle_llm.core.errors import UserError
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.helpers.finetune_jobs import VOCABULARY, finetune, make_instructions
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import rows

METHODS = {
    "full": {},
    "lora": {"lora": True, "lora_rank": 4},
    "prefix": {"prefix_tuning": True, "num_prefix_tokens": 4},
    "adapter": {"adapter": True, "adapter_size": 8},
    "freeze": {"freeze_layers": 1},
    "adalora": {"adalora": True, "lora_rank": 2, "adalora_budget_interval": 1},
    "prompt": {"prompt_tuning": True, "num_prompt_tokens": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_instructions(tmp_path_factory.mktemp("instructions"))


@pytest.mark.parametrize("method", METHODS)
def test_a_cancelled_training_continues_bit_for_bit(folder, tmp_path, method):
    (whole,) = finetune(folder, tmp_path / "whole", **METHODS[method])
    (part,) = finetune(folder, tmp_path / "cut", until=4, **METHODS[method])
    assert part["steps"] == 4
    (continued,) = finetune(folder, tmp_path / "cut", **METHODS[method])
    assert continued["trained"].keys() == whole["trained"].keys()
    for name, value in whole["trained"].items():
        assert np.array_equal(continued["trained"][name], value), name
    losses = [[row["loss"] for row in rows(tmp_path / run) if "loss" in row] for run in ("whole", "cut")]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    with Reader(tmp_path / "whole/checkpoint-6") as reader:
        saved = sum(reader.index.tensors[key].nbytes for key in reader.keys("weights"))
    assert saved == sum(value.nbytes for value in whole["trained"].values())  # nothing of what is frozen


def test_another_base_another_method_is_refused_at_resume(folder, tmp_path):
    finetune(folder, tmp_path / "run", until=3, lora=True)
    other = tmp_path / "other"
    shutil.copytree(folder / "llama", other)
    write_llama(other, vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.03)
    for changes, message in (
        ({"model_name_or_path": other}, "different base model"),
        ({"lora_rank": 4}, "rank 8 -> 4"),
    ):
        with pytest.raises(RankError) as caught:
            finetune(folder, tmp_path / "run", **{"lora": True, **changes})
        assert isinstance(caught.value.exception, UserError) and message in str(caught.value.exception)


def test_the_loss_is_the_mean_over_answer_tokens_of_the_global_batch(folder, tmp_path):
    """Step 1 and the dev set are compared with cross entropies computed by hand, sample by sample, without padding."""
    finetune(folder, tmp_path, max_steps=1, logging_steps=1, learning_rate=1e-30)
    (by_hand,) = run_ranks(_losses_by_hand, 1, str(folder), 4)
    found = rows(tmp_path)
    assert found[0]["loss"] == pytest.approx(by_hand["train"], rel=1e-5)
    assert found[0]["consumed_tokens"] == by_hand["tokens"]
    assert found[1]["eval_loss"] == pytest.approx(by_hand["dev"], rel=1e-5)
    assert found[1]["eval_ppl"] == pytest.approx(math.exp(by_hand["dev"]), rel=1e-4)


def _losses_by_hand(folder: str, batch: int) -> dict[str, float]:
    import paddle
    import paddle.nn.functional as F

    from paddle_llm.data.chat.selection import choose_template
    from paddle_llm.data.epochs import ShuffledEpochs
    from paddle_llm.data.samples.dataset import InstructionDataset, load_split
    from paddle_llm.data.samples.encode import InstructionEncoder
    from paddle_llm.data.tokenizer import load_tokenizer
    from paddle_llm.data.tokenizers.text_codec import open_codec
    from tests.helpers.models.networks import build

    codec = open_codec(load_tokenizer(f"{folder}/llama"))
    encoder = InstructionEncoder(codec, choose_template("auto", codec, f"{folder}/llama").template, max_length=96)
    model = build(f"{folder}/llama", length=96)
    model.eval()
    sums = {}
    for split in ("train", "dev"):
        samples = InstructionDataset(load_split(f"{folder}/data", split), encoder)
        order = ShuffledEpochs(samples, batch, 42) if split == "train" else samples
        total, count, tokens = 0.0, 0, 0
        for sample in (order[i] for i in range(len(order))):
            labels = paddle.to_tensor(sample["labels"])
            logits = model(input_ids=paddle.to_tensor(sample["input_ids"][None]))
            logits = logits[0] if isinstance(logits, tuple) else logits
            total += float(F.cross_entropy(logits[0], labels, ignore_index=-100, reduction="sum"))
            count += int((sample["labels"] != -100).sum())
            tokens += len(sample["input_ids"])
        sums[split] = total / count
        sums.setdefault("tokens", tokens)
    return sums


def test_an_adapter_is_saved_alone_and_trained_on(folder, tmp_path):
    finetune(folder, tmp_path / "first", lora=True, lora_rank=4, max_steps=3)
    saved = load_file(tmp_path / "first/adapter/adapter_model.safetensors")
    assert all(".lora_" in name for name in saved) and not (tmp_path / "first/model").exists()
    again = {"lora": True, "lora_path": tmp_path / "first/adapter"}
    finetune(folder, tmp_path / "second", learning_rate=1e-30, **again)  # the rank is the adapter's
    kept = load_file(tmp_path / "second/adapter/adapter_model.safetensors")
    assert all(np.array_equal(saved[name], kept[name]) for name in saved)
    with pytest.raises(RankError) as caught:
        finetune(folder, tmp_path / "third", lora_rank=16, **again)
    assert "--lora_rank is 16, but the adapter has 4" in str(caught.value.exception)
    assert not (tmp_path / "third").exists()


def test_merged_weights_are_the_base_and_the_product(folder, tmp_path):
    finetune(folder, tmp_path / "run", lora=True, lora_rank=4, merge_weights=True)
    finetune(folder, tmp_path / "base", max_steps=1, learning_rate=1e-30)
    merged, base = (load_file(tmp_path / run / "model/model.safetensors") for run in ("run", "base"))
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    layer = "llama.layers.1.self_attn.q_proj"
    product = 2 * adapter[f"{layer}.lora_A"] @ adapter[f"{layer}.lora_B"]
    assert np.abs(product).max() > 1e-4
    assert np.allclose(merged[f"{layer}.weight"], base[f"{layer}.weight"] + product, atol=1e-6)
    assert (tmp_path / "run/model/tokenizer_config.json").exists()


@pytest.mark.parametrize(
    "ranks, layout",
    [
        (2, {"tensor_parallel_degree": 2}),
        (2, {"sharding": "stage2", "sharding_parallel_degree": 2}),
        (2, {"pipeline_parallel_degree": 2}),
        (2, {}),
    ],
    ids=["tp2", "sharding2", "pp2", "dp2"],
)
def test_every_layout_trains_the_adapter_that_one_process_trains(folder, tmp_path, ranks, layout):
    same = {"lora": True, "lora_rank": 4, "adam_epsilon": 1e-4, "learning_rate": 1e-3, "save_steps": 6}
    data = 1 if layout.keys() & {"tensor_parallel_degree", "pipeline_parallel_degree"} else 2
    alone = {"gradient_accumulation_steps": 4}
    finetune(folder, tmp_path / "one", **same, **alone)
    finetune(folder, tmp_path / "many", ranks=ranks, **same, gradient_accumulation_steps=4 // data, **layout)
    one, many = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("one", "many"))
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert np.linalg.norm(many[name] - value) <= 1e-5 * np.linalg.norm(value), name
    losses = [[row.get("loss", row.get("eval_loss")) for row in rows(tmp_path / run)] for run in ("one", "many")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_packed_rows_may_be_longer_than_the_positions_of_the_model(folder, tmp_path):
    """Rows have 192 tokens, and the model 128 positions: positions are counted in each sample."""
    finetune(folder, tmp_path, zero_padding=True, max_seq_length=192, num_train_epochs=2, max_steps=None)
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert losses[-1] < losses[0]


def test_epochs_see_every_row(folder, tmp_path):
    (trained,) = finetune(folder, tmp_path, max_steps=None, num_train_epochs=1, per_device_train_batch_size=5)
    assert trained["steps"] == 5  # 48 rows in steps of 10


def test_label_smoothing_changes_the_training_only(folder, tmp_path):
    for name, value in (("plain", None), ("smooth", 0.2)):
        finetune(folder, tmp_path / name, label_smoothing=value, max_steps=1, logging_steps=1, learning_rate=1e-30)
    plain, smooth = rows(tmp_path / "plain"), rows(tmp_path / "smooth")
    assert plain[0]["loss"] != smooth[0]["loss"] and plain[1]["eval_loss"] == smooth[1]["eval_loss"]


def test_patience_ends_a_training_without_improvement(folder, tmp_path):
    settings = {"learning_rate": 1e-30, "load_best_model_at_end": True, "early_stopping_patience": 2}
    (trained,) = finetune(folder, tmp_path, max_steps=30, eval_steps=2, save_steps=2, **settings)
    assert trained["steps"] == 6  # the first evaluation, then two that are no better


def test_the_best_of_generated_answers_is_kept(folder, tmp_path):
    """Rows contain the scores, files the answers, and the final weights are those of the best evaluation."""
    scored = {"eval_with_do_generation": True, "generation_max_new_tokens": 8, "metric_for_best_model": "rouge1"}
    best = {"load_best_model_at_end": True, "eval_steps": 10, "save_steps": 10, "per_device_eval_batch_size": 5}
    (found,) = finetune(folder, tmp_path, lora=True, max_steps=40, **scored, **best)
    evaluations = [row for row in rows(tmp_path) if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [10, 20, 30, 40]
    assert {f"eval_{name}" for name in SCORES} < evaluations[0].keys()
    answers = [json.loads(line) for line in (tmp_path / "generated-40.jsonl").read_text().splitlines()]
    references = [json.loads(line)["tgt"] for line in (folder / "data/dev.json").read_text().splitlines()]
    assert [row["reference"] for row in answers] == references
    top = max(evaluations, key=lambda row: (row["eval_rouge1"], -row["step"]))
    assert top["eval_rouge1"] > 0
    with Reader(tmp_path / f"checkpoint-{top['step']}") as saved:
        for name, value in found["trained"].items():
            assert np.array_equal(saved.tensor(f"weights/{name}"), value), name


def test_fine_tuning_runs_from_a_notebook(folder, tmp_path):
    (found,) = run_ranks(_in_a_notebook, 1, str(folder), str(tmp_path / "out"), timeout=120, quiet=True)
    assert found["kind"] == "FinetuneTrainer" and found["loss"] > 0
    assert (tmp_path / "out/adapter/adapter_config.json").exists()
    assert "problems" in found["mistake"] and "lora_rnak" in found["mistake"]


def _in_a_notebook(folder: str, output: str) -> dict:
    from paddle_llm import finetune as tune

    where = {"model_name_or_path": f"{folder}/llama", "dataset_name_or_path": f"{folder}/data", "output_dir": output}
    short = {"device": "cpu", "max_steps": 2, "max_length": 96, "continue_training": False, "report_to": ["none"]}
    try:
        tune(**where, lora_rnak=4, max_length=-1)
    except UserError as error:
        mistake = str(error)
    trainer = tune(**where, **short, do_train=True, do_eval=True, lora=True, lora_target_modules=["q_proj", "v_proj"])
    return {"kind": type(trainer).__name__, "loss": trainer.evaluate()["eval_loss"], "mistake": mistake}
