"""Published fine-tuning commands: those of a 2023 tutorial and of four generations of PaddleNLP."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from paddle_llm.config.defaults import LEARNING_RATES
from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved, resolve, resolved_as_json
from paddle_llm.config.run_config import fields_of
from paddle_llm.core.errors import ConfigError
from tests.helpers.models.tiny import write_llama

# The commands of the tutorial, with --device cpu and a small model. They do not name the data.
COMMANDS = {
    "2 all weights": """
        --do_train --do_eval --num_train_epochs 1 --per_device_train_batch_size 4 --per_device_eval_batch_size 4
        --tensor_parallel_degree 4 --overwrite_output_dir --output_dir ./checkpoints/ --logging_steps 10 --fp16 --fp16_opt_level O2
        --gradient_accumulation_steps 32 --recompute --learning_rate 3e-5 --lr_scheduler_type linear --max_grad_norm 1.0
        --warmup_steps 20
    """,
    "3 LoRA": """
        --do_train --do_eval --num_train_epochs 2 --per_device_train_batch_size 4 --per_device_eval_batch_size 4
        --overwrite_output_dir --output_dir ./checkpoints/ --logging_steps 10 --fp16 --fp16_opt_level O2
        --gradient_accumulation_steps 4 --recompute --learning_rate 3e-4 --lr_scheduler_type linear --max_grad_norm 1.0
        --warmup_steps 20 --lora True --r 8
    """,
    "5 pipeline": """
        --do_train --do_eval --num_train_epochs 1 --dataloader_num_workers 1 --gradient_accumulation_steps 16
        --per_device_train_batch_size 1 --per_device_eval_batch_size 16 --tensor_parallel_degree 2 --pipeline_parallel_degree 2
        --pipeline_parallel_config "disable_p2p_cache_shape" --overwrite_output_dir --output_dir ./checkpoints/ --logging_steps 1
        --disable_tqdm 1 --eval_steps 100 --eval_with_do_generation 0 --fp16 0 --fp16_opt_level O2 --recompute 0
        --learning_rate 3e-5 --lr_scheduler_type linear --max_grad_norm 1.0 --warmup_steps 20
    """,
}
COMMANDS["4 prefix"] = COMMANDS["3 LoRA"].replace(
    "--learning_rate 3e-4", "--learning_rate 3e-2 --prefix_tuning True --num_prefix_tokens 64"
).replace("--lora True --r 8", "")  # fmt: skip
COMMANDS["6 instructions"] = COMMANDS["2 all weights"] + " --instruction_generation"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small model with weights, beside data in the default folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "data").mkdir()
    for name in ("train.json", "dev.json"):
        (tmp_path / "data" / name).write_text('{"src": "1 + 1", "tgt": "2"}\n')
    folder = write_llama(tmp_path / "tiny", max_position_embeddings=4096)
    (folder / "model.safetensors").touch()
    return folder


def typed(model: Path, flags: str, world_size: int = 1) -> Resolved:
    words = ["--model_name_or_path", str(model), *shlex.split(flags.replace("\n", " ")), "--device", "cpu"]
    return resolve(words, world_size=world_size, entry="finetune")


def refused(model: Path, flags: str, world_size: int = 1) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        typed(model, flags, world_size)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "layout", "wanted", "notices"),
    [
        ("2 all weights", Layout(tensor=4), {"lora": False, "learning_rate": 3e-5}, ["--fp16 is not supported on the CPU"]),
        ("3 LoRA", Layout(), {"lora": True, "lora_rank": 8, "learning_rate": 3e-4}, ["--r 8 is read as --lora_rank 8", "--fp16"]),
        ("4 prefix", Layout(), {"prefix_tuning": True, "num_prefix_tokens": 64, "learning_rate": 3e-2}, ["--fp16 is"]),
        (
            "5 pipeline",
            Layout(tensor=2, pipeline=2),
            {"evaluation_strategy": "steps", "pad_to_max_length": True},
            ["--fp16_opt_level has no effect"],
        ),
        (
            "6 instructions",
            Layout(tensor=4),
            {"learning_rate": 3e-5},
            ["--instruction_generation has no effect: instructions are read in every format", "--fp16 is"],
        ),
    ],
)  # fmt: skip
def test_the_commands_of_the_tutorial_are_accepted(
    model: Path, name: str, layout: Layout, wanted: dict[str, Any], notices: list[str]
) -> None:
    found = typed(model, COMMANDS[name], layout.world_size)
    assert found.layout == layout
    common = {"dataset_name_or_path": "data", "max_length": 2048, "continue_training": True, "warmup_steps": 20}
    for key, value in {**common, **wanted}.items():
        assert getattr(found.config, key) == value, key
    assert len(found.notices) == len(notices), found.notices
    for text, line in zip(notices, found.notices, strict=True):
        assert text in line


def test_a_printed_command_without_spaces_is_accepted(model: Path) -> None:
    printed = COMMANDS["5 pipeline"].replace("--fp16 0 --fp16_opt_level", "--fp16 0--fp16_opt_level")
    assert refused(model, printed, 4) == ["0--fp16_opt_level: missing space. Write 0 --fp16_opt_level"]
    glued = refused(model, "--do_train --output_dir o --lora True--r 8")
    assert glued == ["True--r: missing space. Write True --r"]


def test_missing_data_is_one_message(model: Path) -> None:
    (model.parent / "data" / "train.json").unlink()
    (model.parent / "data" / "dev.json").unlink()
    (model.parent / "data").rmdir()
    assert [line for line in refused(model, COMMANDS["3 LoRA"])] == [
        "dataset_name_or_path is missing, and ./data/train.json does not exist. Give --dataset_name_or_path FILE, or a folder with "
        "train.json and dev.json."
    ]


GENERATION_A = """
    --task_name_or_path ./data --src_length 608 --tgt_length 160 --min_tgt_length 0 --lr_decay_ratio 0.1 --label_smoothing 0.1
    --lora True --r 4 --merge_weights True --do_generation True --select_topk True --num_beams 5 --num_train_epochs 2
    --learning_rate 3e-4 --output_dir out --do_train --do_eval
"""
GENERATION_B = """
    --dataset_path ./data --src_length 512 --tgt_length 512 --prefix_tuning 1 --num_prefix_tokens 64 --prefix_projection False
    --lora False --lora_rank 8 --eval_with_do_generation 0 --qat False --qat_type A8W8 --benchmark 0 --output_dir out --do_train
"""
GENERATION_C = {
    "dataset_name_or_path": "./data",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "learning_rate": 3e-04,
    "warmup_steps": 30,
    "logging_steps": 1,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "src_length": 1024,
    "max_length": 2048,
    "do_train": True,
    "do_eval": True,
    "disable_tqdm": True,
    "load_best_model_at_end": True,
    "eval_with_do_generation": False,
    "metric_for_best_model": "accuracy",
    "recompute": True,
    "save_total_limit": 1,
    "tensor_parallel_degree": 1,
    "pipeline_parallel_degree": 1,
    "lora": True,
    "intokens": True,
    "weight_quantize_algo": None,
    "do_ptq": False,
    "quant_type": "A8W8",
    "output_dir": "out",
}
GENERATION_D = {
    **{key: value for key, value in GENERATION_C.items() if key not in ("intokens", "do_ptq", "quant_type", "metric_for_best_model")},
    "zero_padding": True,
    "greedy_zero_padding": True,
    "unified_checkpoint": True,
    "flash_mask": True,
    "use_quick_lora": True,
    "rslora": False,
    "lora_plus_scale": 4.0,
    "pissa": False,
    "neftune": False,
    "vera": False,
    "autoregressive": False,
}  # fmt: skip


def from_file(model: Path, content: dict[str, Any]) -> Resolved:
    Path("old.json").write_text(json.dumps({**content, "model_name_or_path": str(model), "device": "cpu"}))
    return resolve(["old.json"], world_size=1, entry="finetune")


def test_commands_of_generation_a_are_translated(model: Path) -> None:
    config = typed(model, GENERATION_A).config
    assert (config.src_length, config.max_length, config.generation_max_new_tokens) == (608, 768, 160)
    assert (config.lora_rank, config.lora_alpha, config.merge_weights, config.num_beams) == (4, 8.0, True, 5)
    assert config.eval_with_do_generation and config.label_smoothing == 0.1
    assert config.min_learning_rate == pytest.approx(3e-5)
    assert config.dataset_name_or_path == "./data"


def test_commands_of_generation_b_are_translated(model: Path) -> None:
    found = typed(model, GENERATION_B)
    assert found.config.prefix_tuning and not found.config.lora and found.config.max_length == 1024
    assert [line.split(" ")[0] for line in found.notices] == ["--dataset_path", "--tgt_length", "--lora_rank"]


def test_configs_of_generation_c_are_translated(model: Path) -> None:
    found = from_file(model, GENERATION_C)
    assert found.config.zero_padding and found.config.lora_rank == 8
    assert (found.config.metric_for_best_model, found.config.greater_is_better) == ("loss", False)
    assert found.notices == [
        '"intokens" in old.json: true is read as "zero_padding": true',
        "metric_for_best_model = accuracy is read as loss: the accuracy of single tokens is not measured.",
    ]


def test_configs_of_generation_d_are_translated(model: Path) -> None:
    found = from_file(model, GENERATION_D)
    assert found.config.zero_padding and found.config.lora_plus_scale == 4.0 and not found.config.rslora
    assert found.notices == ['"greedy_zero_padding" in old.json: true is read as "zero_padding": true']


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--vera", "its vectors start at zero"),
        ("--pissa", "loads a PiSSA adapter into a model that it does not fit"),
        ("--use_mora", "merging a MoRA adapter"),
        ("--reft", "fails to train"),
        ("--lokr", "cannot save LoKr"),
        ("--weight_quantize_algo nf4", "need CUDA kernels"),
        ("--do_ptq", "not part of fine-tuning"),
        ("--lora_r 8", "--lora_r is unknown. Did you mean --lora_rank?"),
        ("--cutoff_len 512", "--cutoff_len is unknown. Did you mean --max_length?"),
        ("--input_dir ./data", "belongs to run_pretrain.py, not to finetune_generation.py"),
    ],
)
def test_refused_names_give_the_reason(model: Path, flag: str, reason: str) -> None:
    problems = refused(model, f"--do_train --output_dir out {flag}")
    assert len(problems) == 1 and reason in problems[0]


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ("", "full"),
        ("--lora", "lora"),
        ("--adalora", "adalora"),
        ("--prefix_tuning", "prefix"),
        ("--prefix_tuning --prefix_projection", "prefix with projection"),
        ("--prompt_tuning", "prompt"),
        ("--adapter", "adapter"),
        ("--freeze_layers 1", "freeze"),
    ],
)
def test_the_default_learning_rate_depends_on_the_method(model: Path, flags: str, rate: str) -> None:
    found = typed(model, f"--do_train --output_dir out {flags}")
    value, why = LEARNING_RATES[rate]
    assert found.config.learning_rate == value
    assert found.config.min_learning_rate == value / 10
    row = resolved_as_json(found)["arguments"]["learning_rate"]
    assert row == {"value": value, "origin": f"default: {why}"}
    assert typed(model, f"--do_train --output_dir out {flags} --learning_rate 1e-6").config.learning_rate == 1e-6


def test_null_gives_the_default_of_the_entry(model: Path) -> None:
    found = from_file(model, {"do_train": True, "output_dir": "o", "learning_rate": None, "num_train_epochs": "None"})
    config = found.config
    assert (config.learning_rate, config.num_train_epochs, config.warmup_ratio, config.adam_beta2) == (
        2e-5,
        3.0,
        0.03,
        0.999,
    )
    assert (config.save_strategy, config.continue_training, config.max_seq_length) == ("epoch", True, 2048)
    assert found.origins["learning_rate"].startswith("default: Alpaca")
    assert set(resolved_as_json(found)["arguments"]) == set(fields_of("finetune")) == set(found.origins)


def test_a_number_of_steps_changes_the_strategies(model: Path) -> None:
    by_steps = typed(model, "--do_train --do_eval --output_dir o --eval_steps 50 --load_best_model_at_end").config
    assert (by_steps.evaluation_strategy, by_steps.save_strategy, by_steps.save_steps) == ("steps", "steps", 50)
    by_epochs = typed(model, "--do_train --do_eval --output_dir o --load_best_model_at_end").config
    assert (by_epochs.evaluation_strategy, by_epochs.save_strategy) == ("epoch", "epoch")
    assert typed(model, "--do_train --output_dir o --save_steps 7").config.save_strategy == "steps"
    constant = typed(model, "--do_train --output_dir o --lr_scheduler_type constant")
    assert constant.config.warmup_ratio == 0 and constant.notices == []


def test_greater_scores_and_smaller_losses_are_better(model: Path) -> None:
    flags = (
        "--do_train --do_eval --output_dir o --load_best_model_at_end --eval_with_do_generation --metric_for_best_model"
    )
    assert typed(model, f"{flags} eval_bleu").config.greater_is_better is True
    assert typed(model, f"{flags} ppl").config.greater_is_better is False


def test_default_lengths_fit_a_model_with_few_positions(tmp_path: Path, model: Path) -> None:
    short = write_llama(tmp_path / "short", max_position_embeddings=100)
    (short / "model.safetensors").touch()
    found = typed(short, "--do_train --output_dir o")
    assert (found.config.max_length, found.config.max_seq_length, found.config.src_length) == (100, 100, 99)
    assert found.origins["max_length"] == "default: the model's 100 positions"
    assert typed(short, "--do_train --output_dir o --prompt_tuning").config.max_length == 80
    assert "exceeds the 100 positions" in refused(short, "--do_train --output_dir o --max_length 101")[0]


def test_derived_settings_of_methods(model: Path) -> None:
    config = typed(model, "--do_train --output_dir o --adalora --lora_rank 5").config
    assert (config.lora_alpha, config.adalora_init_rank) == (10.0, 8)
    config = typed(model, "--do_train --output_dir o --sequence_parallel --tensor_parallel_degree 2", 2).config
    assert config.pad_to_multiple_of == 2


def test_formats_and_templates_are_those_of_the_data_package() -> None:
    from paddle_llm.config.local_files.instruction_data import CHAT_TEMPLATES, SPLIT_NAMES
    from paddle_llm.config.local_files.split_names import SPLIT_NAMES as SPLITS
    from paddle_llm.config.parsing.values import kind_of
    from paddle_llm.data.chat.templates import TEMPLATES
    from paddle_llm.data.instructions.data_files import DEFAULT_DATA
    from paddle_llm.data.instructions.formats import FORMATS
    from paddle_llm.data.samples.encode import LOSS_ON
    from paddle_llm.data.samples.encoded_samples import LONG_SAMPLES

    assert SPLIT_NAMES == SPLITS and DEFAULT_DATA == "data"
    assert set(CHAT_TEMPLATES) == {"auto", "jinja", *TEMPLATES}
    assert set(kind_of("data_format").choices) == {"auto", *FORMATS}
    assert kind_of("loss_on").choices == LOSS_ON and kind_of("long_samples").choices == LONG_SAMPLES
