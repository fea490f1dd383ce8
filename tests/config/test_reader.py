"""The reader: published commands, files with flags, all mistakes at once, derived values and notices."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paddle_llm.config import device as device_module
from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import Resolved, resolve, resolved_as_json
from paddle_llm.config.run_config import fields_of
from paddle_llm.core.errors import ConfigError
from tests.helpers.models.tiny import write_bloom, write_llama

# Command 1 of a public 2023 tutorial: pretraining on 8 cards with sharding stage 2.
COMMAND_1 = r"""
    --model_type "llama" --model_name_or_path "facebook/llama-7b" --tokenizer_name_or_path "facebook/llama-7b" \
    --input_dir "./data" --output_dir "output/llama_hybid" --split 949,50,1 --max_seq_length 2048 \
    --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --use_flash_attention 1 --use_fused_rms_norm 0 \
    --fp16 --fp16_opt_level "O2" --scale_loss 1024 --learning_rate 0.00001 --min_learning_rate 0.000005 --lr_scheduler_type "cosine" \
    --max_steps 10000 --save_steps 5000 --weight_decay 0.01 --warmup_ratio 0.01 --max_grad_norm 1.0 --logging_steps 20 \
    --dataloader_num_workers 1 --sharding "stage2" --eval_steps 1000 --report_to "visualdl" --disable_tqdm true \
    --continue_training 1 --recompute 1 --do_train --do_eval --device "gpu"
"""


def typed(command: str) -> list[str]:
    """Return the words into which a shell splits `command`: a backslash at the end of a line joins it with the next."""
    return shlex.split(command.replace("\\\n", ""))


@pytest.fixture(autouse=True)
def a_machine_without_gpu_and_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path / "no-downloads"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "tiny")


def base(model: Path) -> list[str]:
    return [
        "--model_name_or_path",
        str(model),
        *shlex.split("--do_train --input_dir ./data --output_dir ./out --max_seq_length 64"),
    ]


def problems_of(argv: list[str], **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(argv, **{"world_size": 1, **more})
    return caught.value.problems


def test_command_1_is_accepted_on_eight_gpus() -> None:
    found = resolve(typed(COMMAND_1), world_size=8, device="gpu")
    assert found.layout == Layout(sharding=8, sharding_stage=2)
    config = found.config
    assert (config.fp16, config.fp16_opt_level, config.scale_loss) == (True, "O2", 1024.0)
    assert (config.learning_rate, config.min_learning_rate, config.lr_scheduler_type) == (1e-5, 5e-6, "cosine")
    assert (config.use_flash_attention, config.use_fused_rms_norm, config.recompute) == (True, False, True)
    assert (config.max_steps, config.save_steps, config.eval_steps, config.logging_steps) == (10000, 5000, 1000, 20)
    assert (config.sharding, config.report_to, config.disable_tqdm) == ("stage2", ["visualdl"], True)
    assert config.continue_training and config.do_train and config.do_eval and not config.do_predict
    assert found.origins["fp16"] == "flag" and found.origins["seed"] == "default"
    assert found.requested == {}


def test_command_1_on_cpu_ranks_reports_what_is_not_supported() -> None:
    argv = [*typed(COMMAND_1), "--device", "cpu"]
    found = resolve(argv, world_size=8)
    assert not found.config.fp16 and not found.config.use_flash_attention
    assert found.requested == {"fp16": True, "use_flash_attention": True}
    assert found.origins["fp16"] == "not supported on the CPU"
    assert any(
        line.startswith("--fp16 is not supported on the CPU: everything is computed in fp32") for line in found.notices
    )
    assert any("--use_flash_attention is not supported on the CPU" in line for line in found.notices)


def test_command_1_is_accepted_with_a_missing_space() -> None:
    printed = COMMAND_1.replace("--logging_steps 20 \\\n    --data", "--logging_steps 20\\\n--data")
    assert problems_of(typed(printed), world_size=8, device="gpu") == [
        "20--dataloader_num_workers: missing space. Write 20 --dataloader_num_workers"
    ]


def test_a_built_in_name_without_weights_names_the_local_form() -> None:
    shipped = resolve(typed(COMMAND_1), world_size=8, device="gpu")
    assert shipped.facts is not None and shipped.facts.hidden_size == 4096
    assert shipped.config.model_name_or_path == "facebook/llama-7b"
    assert [line for line in shipped.notices if "weights must be downloaded" in line and "/path/to/llama-7b" in line]
    unknown = resolve(typed(COMMAND_1.replace("facebook/", "somebody/")), world_size=8, device="gpu")
    assert unknown.facts is None
    assert [line for line in unknown.notices if "shape cannot be checked" in line and "/path/to/llama-7b" in line]


def test_a_built_in_name_is_built_from_its_shipped_shape() -> None:
    found = resolve([*typed(COMMAND_1), "--continue_training", "0"], world_size=8, device="gpu")
    assert found.config.model_name_or_path.endswith("configs/models/llama-7b")
    assert found.origins["model_name_or_path"] == "derived: local folder of facebook/llama-7b"
    assert found.requested["model_name_or_path"] == "facebook/llama-7b"
    assert any("is not a folder on this machine: using " in line for line in found.notices)


def test_a_downloaded_built_in_name_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path))
    folder = write_llama(tmp_path / "models" / "some" / "model")
    flags = shlex.split(
        "--model_name_or_path some/model --do_train --input_dir data --output_dir o --max_seq_length 64"
    )
    random = resolve(flags, world_size=1)
    assert random.config.model_name_or_path == str(folder) and random.facts is not None
    loaded = resolve([*flags, "--continue_training"], world_size=1)
    assert loaded.config.model_name_or_path == "some/model", "a shape alone has no weights to continue from"
    (folder / "model_state.pdparams").touch()
    assert resolve([*flags, "--continue_training"], world_size=1).config.model_name_or_path == str(folder)


def test_flags_take_precedence_over_the_file(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"max_steps": 5, "learning_rate": "1e-4", "bf16": 0, "seed": None, "device": "cpu"}))
    found = resolve([str(path), *base(model), "--max_steps", "7"], world_size=1)
    assert (found.config.max_steps, found.config.learning_rate, found.config.seed) == (7, 1e-4, 42)
    assert found.origins["max_steps"] == "flag"
    assert found.origins["learning_rate"] == f"file {path}"


def test_a_flag_takes_precedence_over_an_old_name_in_the_file(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"sharding": "stage1", "sharding_degree": 4, "initializer_range": 0.002}))
    argv = [str(path), *base(model), "--device", "cpu"]
    found = resolve(argv, world_size=4)
    assert found.layout == Layout(sharding=4, sharding_stage=1)
    assert found.origins["sharding_parallel_degree"] == f'translated from "sharding_degree" in {path}'
    assert any('is read as "sharding_parallel_degree": 4' in line for line in found.notices)
    assert any("initializer_range" in line and "has no effect" in line for line in found.notices)
    other = resolve([*argv, "--sharding_parallel_degree", "2"], world_size=4)
    assert other.layout == Layout(data=2, sharding=2, sharding_stage=1)


def test_old_and_new_name_in_one_place_must_agree(model: Path) -> None:
    argv = [
        *base(model),
        *shlex.split("--sharding stage1 --sharding_degree 2 --sharding_parallel_degree 4 --device cpu"),
    ]
    assert (
        "--sharding_degree and --sharding_parallel_degree set the same field to different values. Drop one of them."
        in problems_of(argv, world_size=4)
    )


def test_all_mistakes_are_reported_at_once(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(
        '{"learing_rate": 1, "bf16": "perhaps", "max_steps": 0, "lora": true, "to_static": true, "seed": 1, "seed": 2}'
    )
    flags = "--adam_beta2 1.5 --tensor_parallel_degree 3 --do_eval --split 1,0,0 --max_seq_length 4096 --save_steps"
    problems = problems_of([str(path), *base(model), *flags.split()], world_size=8, device="gpu")
    expected = [
        'duplicate key "seed"',
        '"lora" in ' + str(path) + " belongs to finetune_generation.py",
        '"to_static" in ' + str(path) + " = true is not supported",
        '"learing_rate" in ' + str(path) + " is unknown. Did you mean learning_rate?",
        '"bf16" in ' + str(path) + " = perhaps: expected true or false",
        "--save_steps has no value. Give a whole number.",
        "--adam_beta2 = 1.5: must be less than 1.",
        "3 = 3 ranks does not divide the 8 ranks of the job",
        "max_steps = 0",
        "split = 1,0,0: no documents are left to evaluate on",
        "exceeds the 128 positions",
    ]
    for text in expected:
        assert len([line for line in problems if text in line]) == 1, (text, problems)
    assert len(problems) == len(expected)


def test_keys_of_an_unreadable_file_are_not_reported_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"model_name_or_path": "m", ')
    problems = problems_of([str(path), "--max_steps", "x"], device="gpu")
    assert (
        len(problems) == 2
        and "is not valid JSON: line 1" in problems[0]
        and problems[1].startswith("--max_steps = x: expected")
    )
    assert problems_of([str(tmp_path / "none.json")], device="gpu") == [
        f"{tmp_path / 'none.json'} does not exist. Give a JSON file as the first argument, or only --flags."
    ]


def test_stage_3_with_a_pipeline_names_the_nearest_layouts_with_their_numbers(model: Path) -> None:
    flags = (
        "--sharding stage3 --sharding_parallel_degree 2 --tensor_parallel_degree 4 --pipeline_parallel_degree 4 "
        "--virtual_pp_degree 2 --gradient_accumulation_steps 32 --num_hidden_layers 8"
    )
    (problems,) = problems_of([*base(model), *flags.split()], world_size=64, device="gpu")
    assert problems.splitlines()[1:] == [
        "       --sharding stage2: dp2 x sharding2(stage2) x tp4 x pp4v2, weights divided by 16",
        "       --pipeline_parallel_degree 1 --sharding_parallel_degree 8 --virtual_pp_degree 1 --gradient_accumulation_steps 8: "
        "dp2 x sharding8(stage3) x tp4, weights divided by 32, the same global batch",
    ]
    for line, more in zip(problems.splitlines()[1:], ([], ["--data_parallel_degree", "2"]), strict=True):
        nearest = resolve(
            [*base(model), *flags.split(), *line.split(":")[0].split(), *more], world_size=64, device="gpu"
        )
        assert str(nearest.layout) == line.split(": ")[1].split(",")[0], "what is named is a layout that works"


def test_stage_3_with_a_pipeline_and_an_uneven_batch_names_the_new_batch(model: Path) -> None:
    flags = "--sharding stage3 --pipeline_parallel_degree 2 --gradient_accumulation_steps 5"
    (problems,) = problems_of([*base(model), *flags.split()], world_size=8, device="gpu")
    assert problems.endswith(
        "--pipeline_parallel_degree 1 --sharding_parallel_degree 8: sharding8(stage3), weights divided by 8, "
        "a global batch of 40 instead of 20"
    )


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_offload_of_sharding_is_offload_optim(model: Path, stage: str) -> None:
    found = resolve([*base(model), "--sharding", stage, "offload"], world_size=2, device="gpu")
    assert found.config.sharding_offload and found.config.offload_optim
    assert found.origins["offload_optim"] == f"derived: --sharding {stage} offload"
    on_cpu = resolve([*base(model), "--sharding", stage, "offload", "--device", "cpu"], world_size=2)
    assert not on_cpu.config.sharding_offload and not on_cpu.config.offload_optim
    assert on_cpu.config.sharding == stage and on_cpu.requested == {"sharding": f"{stage} offload"}
    notices = [line for line in on_cpu.notices if "offload" in line]
    assert notices == [
        f"--sharding {stage} offload: offload has no effect on the CPU, where everything is in host memory anyway."
    ]


def test_switches_without_effect_are_reported_and_dropped(model: Path) -> None:
    flags = "--sharding stage2 --sharding_parallel_config split_param enable_release_grads --pipeline_parallel_config enable_timer"
    found = resolve([*base(model), *flags.split()], world_size=2, device="gpu")
    assert found.config.sharding_parallel_config == "enable_release_grads"
    assert found.config.pipeline_parallel_config == ""
    assert found.requested == {
        "sharding_parallel_config": "split_param enable_release_grads",
        "pipeline_parallel_config": "enable_timer",
    }
    assert len([line for line in found.notices if "no effect" in line]) == 2


def test_all_mistakes_of_a_layout_are_reported_at_once(tmp_path: Path) -> None:
    """The reader reports together what otherwise only the built model would refuse."""
    bloom = tmp_path / "bloom"
    write_bloom(bloom, n_head=6, hidden_size=66)
    flags = (
        "--tensor_parallel_degree 4 --pipeline_parallel_degree 8 --sequence_parallel --sharding stage3 "
        "--gradient_accumulation_steps 8"
    )
    problems = problems_of([*base(bloom), "--max_seq_length", "63", *flags.split()], world_size=64, device="gpu")
    expected = [
        "gather its weights for each of the 8 micro-batches",
        "tensor_parallel_degree = 4 does not divide max_seq_length = 63",
        "sequence_parallel is not supported for BLOOM",
        "does not divide the 6 attention heads of the model. Use one of 1, 2, 3, 6",
        "has 4 layers: a stage would be empty",
    ]
    for text in expected:
        assert len([line for line in problems if text in line]) == 1, (text, problems)
    assert len(problems) == len(expected)


def test_a_bad_value_is_not_reported_again_by_the_rules(model: Path) -> None:
    assert problems_of([*base(model), "--max_seq_length", "long", "--sharding_parallel_degree", "x"], device="gpu") == [
        "--max_seq_length = long: expected a whole number.",
        "--sharding_parallel_degree = x: expected a whole number.",
    ]


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--learing_rate", "Did you mean --learning_rate?"),
        ("--learning", "Did you mean --learning_rate?"),
        ("--learning-rate", "Did you mean --learning_rate?"),
        ("--lr", "Did you mean --learning_rate?"),
        ("--mp_degree", "Did you mean --tensor_parallel_degree?"),
        ("--gradient_acc", "Did you mean --gradient_accumulation_steps?"),
        ("--qqq", "--help lists all names."),
    ],
)
def test_a_name_must_be_exact_and_a_close_one_is_suggested(model: Path, flag: str, hint: str) -> None:
    assert problems_of([*base(model), flag, "1"], device="gpu") == [f"{flag} is unknown. {hint}"]


def test_a_close_choice_is_suggested(model: Path) -> None:
    problems = problems_of([*base(model), "--lr_scheduler_type", "cosin"], device="gpu")
    assert problems[0].startswith("--lr_scheduler_type = cosin: expected one of") and problems[0].endswith(
        "Did you mean cosine?"
    )


def test_a_text_with_several_words_needs_quotes(model: Path) -> None:
    assert problems_of([*base(model), "--run_name", "a", "b"], device="gpu") == [
        "--run_name = a b: expected text (one value)."
    ]


def test_the_best_device_is_chosen_and_reported(model: Path) -> None:
    found = resolve(base(model), world_size=1)
    assert found.config.device == "cpu"
    assert found.notices == ["device: cpu (no GPU was found on this machine)"]
    assert found.origins["device"] == "derived: the best available"


def test_gpu_without_a_gpu_is_refused(model: Path) -> None:
    assert problems_of([*base(model), "--device", "gpu"]) == [
        "device = gpu, but no GPU was found on this machine. Use --device cpu, or drop --device."
    ]


def test_a_gpu_with_a_cpu_build_of_paddle_is_reported(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "has_gpu", lambda: True)
    monkeypatch.setattr(device_module, "paddle_has_gpu", lambda: False)
    found = resolve(base(model), world_size=1)
    assert found.config.device == "cpu" and "the installed Paddle is a CPU build" in found.notices[0]


def test_one_process_with_stage_2_and_no_degree_runs(model: Path) -> None:
    found = resolve([*base(model), "--sharding", "stage2", "--device", "cpu"], world_size=1)
    assert found.layout == Layout() and found.config.sharding == "" and found.requested == {"sharding": "stage2"}
    assert any("has no ranks to shard over" in line for line in found.notices)


def test_absent_fields_are_derived(model: Path) -> None:
    flags = "--do_eval --tensor_parallel_degree 2 --pipeline_parallel_degree 2 --gradient_accumulation_steps 4 --max_steps 9"
    found = resolve([*base(model), *flags.split(), "--device", "cpu"], world_size=8)
    config = found.config
    assert (config.data_parallel_degree, config.sharding_parallel_degree) == (2, 1)
    assert config.per_device_eval_batch_size == 4
    assert config.min_learning_rate == pytest.approx(config.learning_rate / 10)
    assert (config.evaluation_strategy, config.decay_steps, config.data_seed) == ("steps", 9, 42)
    assert (config.model_type, config.tokenizer_name_or_path) == ("llama", str(model))
    assert found.origins["min_learning_rate"] == "derived: a tenth of learning_rate"
    assert found.origins["per_device_eval_batch_size"].startswith("derived: a pipeline")


@pytest.mark.parametrize(
    "device, flags, on",
    [
        ("cpu", "", True),
        ("gpu", "", False),
        ("gpu", "--use_fused_rms_norm 1", True),
        ("cpu", "--use_fused_rms_norm 0", False),
    ],
)
def test_the_fused_norm_is_on_for_a_cpu(device: str, flags: str, on: bool, model: Path) -> None:
    found = resolve([*base(model), *flags.split()], world_size=1, device=device)
    assert found.config.use_fused_rms_norm is on


def test_the_fused_norm_is_off_for_a_model_without_rms_norm(tmp_path: Path) -> None:
    from tests.helpers.models.tiny import write_bloom

    found = resolve([*base(write_bloom(tmp_path)), "--device", "cpu"], world_size=1)
    assert found.config.use_fused_rms_norm is False


def test_a_smaller_perplexity_is_better(model: Path) -> None:
    """PaddleNLP would select the worst model: it treats a greater value of every metric except the loss as better."""
    flags = "--do_eval --load_best_model_at_end --metric_for_best_model ppl --device cpu"
    assert resolve([*base(model), *flags.split()], world_size=1).config.greater_is_better is False
    flags += " --greater_is_better true"
    assert resolve([*base(model), *flags.split()], world_size=1).config.greater_is_better is True


def test_evaluation_strategy_switches_evaluation_on(model: Path) -> None:
    found = resolve([*base(model), "--evaluation_strategy", "steps", "--device", "cpu"], world_size=1)
    assert found.config.do_eval and found.config.evaluation_strategy == "steps"


def test_fewer_layers_change_the_shape_of_the_model(model: Path) -> None:
    found = resolve([*base(model), "--num_hidden_layers", "2", "--device", "cpu"], world_size=1)
    assert found.facts is not None and found.facts.num_hidden_layers == 2


def test_a_missing_folder_is_a_problem_of_the_config(tmp_path: Path, model: Path) -> None:
    argv = [*base(model), "--model_name_or_path", str(tmp_path / "nowhere"), "--max_steps", "0"]
    problems = problems_of(argv, device="gpu")
    assert len(problems) == 2 and "no such folder exists" in problems[0]


def test_resolved_as_json_is_json_and_complete(model: Path) -> None:
    found = resolve([*base(model), "--bf16", "--device", "cpu"], world_size=1)
    written = json.loads(json.dumps(resolved_as_json(found)))
    assert set(written["arguments"]) == set(fields_of("pretrain"))
    assert written["arguments"]["bf16"] == {"value": False, "origin": "not supported on the CPU", "asked": True}
    assert written["arguments"]["device"] == {"value": "cpu", "origin": "flag"}
    assert (written["layout"], written["world_size"]) == ("one process", 1)


def test_every_field_has_an_origin(model: Path) -> None:
    found: Resolved = resolve(base(model), world_size=1)
    assert set(found.origins) == set(fields_of("pretrain"))


def test_an_unknown_entry_is_an_internal_error() -> None:
    with pytest.raises(ValueError, match="entry must be one of"):
        resolve([], world_size=1, entry="distil")


def test_reading_configs_imports_no_paddle_and_is_quick() -> None:
    # Processor time does not depend on other processes.
    code = (
        "import sys, time; start = time.process_time(); import paddle_llm.config.reader, paddle_llm.config.schema; "
        "took = time.process_time() - start; "
        "assert not {m.split('.')[0] for m in sys.modules} & {'paddle', 'paddlenlp', 'numpy'}, 'heavy import'; print(took)"
    )
    took = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    )
    assert took < 0.5, f"{took:.2f} s"
