"""The rules of fine-tuning, each with a command line that it reports and one that it accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.config.rule_case import Case, check, resolve_case

_CASES = [
    # instructions
    Case(
        "lengths",
        "--src_length 64",
        problem="src_length = 64 leaves no token for an answer: max_length = 64",
        fine="--src_length 63",
    ),
    Case(
        "lengths",
        "--max_seq_length 128",
        notice="no effect without --zero_padding",
        fine="--zero_padding --max_seq_length 128",
    ),
    Case("lengths", "--max_seq_length 32 --zero_padding", problem="is shorter than max_length = 64 (a sample)"),
    Case(
        "padding",
        "--tensor_parallel_degree 2 --sequence_parallel --pad_to_multiple_of 3",
        problem="Use a multiple of 2",
        fine="--tensor_parallel_degree 2 --sequence_parallel --pad_to_multiple_of 4",
        world=2,
    ),
    Case("padding", "--pad_to_max_length --zero_padding", notice="all packed rows have the same length"),
    Case("padding", "--pad_to_max_length --pad_to_multiple_of 8", notice="--pad_to_multiple_of has no effect"),
    Case(
        "padding",
        "--pad_to_max_length 0 --pipeline_parallel_degree 2 --gradient_accumulation_steps 4",
        notice="stages expect rows of the same length",
        fine="--pipeline_parallel_degree 2 --gradient_accumulation_steps 4",
        world=2,
    ),
    Case(
        "padding",
        "--pad_to_max_length 0 --tensor_parallel_degree 2 --sequence_parallel",
        notice="layers expect rows of the same length",
        fine="--tensor_parallel_degree 2 --sequence_parallel",
        world=2,
    ),
    Case(
        "weights_exist",
        "--dataset_name_or_path one.jsonl --continue_training 1",
        problem="or give the folder of a trained model.",
        here=True,
    ),
    Case(
        "dataset_exists",
        "",
        problem="and ./data/train.json does not exist. Give --dataset_name_or_path FILE",
        fine="--dataset_name_or_path one.jsonl",
        here=True,
    ),
    Case(
        "dataset_exists",
        "--dataset_name_or_path squad",
        problem="dataset_name_or_path = squad: no such file or folder exists",
        here=True,
    ),
    Case("dataset_exists", "--dataset_name_or_path onee.jsonl", problem="Did you mean one.jsonl?", here=True),
    Case(
        "dataset_exists",
        "--dataset_name_or_path 0.5 one.jsonl 0.5 gone.jsonl",
        problem="dataset_name_or_path = gone.jsonl: no such file or folder exists",
        fine="--dataset_name_or_path 0.5 one.jsonl 0.5 both",
        here=True,
    ),
    Case(
        "dataset_exists",
        "--dataset_name_or_path 0.5 one.jsonl both",
        problem="alternating weights and paths",
        here=True,
    ),
    Case(
        "dataset_exists",
        "--dataset_name_or_path typo",
        problem="typo: it has no train.json (or jsonl, csv, parquet). Did you mean trian.json?",
        fine="--dataset_name_or_path both",
        here=True,
    ),
    Case("dataset_exists", "--dataset_name_or_path there", problem="there: it has no train.json", here=True),
    Case(
        "dataset_exists",
        "--dataset_name_or_path one.jsonl --do_eval",
        problem="--do_eval needs dev.json, which does not exist in one.jsonl. Put it beside train.json",
        fine="--dataset_name_or_path both --do_eval",
        here=True,
    ),
    Case(
        "dataset_exists",
        "--dataset_name_or_path one.jsonl --evaluation_strategy epoch --save_strategy epoch --load_best_model_at_end "
        "--early_stopping_patience 2",
        problem="or use --evaluation_strategy no --load_best_model_at_end 0 --early_stopping_patience null.",
        here=True,
    ),
    Case(
        "dataset_exists",
        "--dataset_name_or_path both --do_predict",
        problem="--do_predict needs test.json, which does not exist in",
        here=True,
    ),
    Case(
        "chat_template_exists",
        "--dataset_name_or_path both --chat_template lama3",
        problem="Did you mean llama3?",
        fine="--dataset_name_or_path both --chat_template llama3",
        here=True,
    ),
    Case(
        "chat_template_exists",
        "--dataset_name_or_path both --prompt_templates p3.yaml",
        problem="prompt_templates = p3.yaml: no such file exists",
        here=True,
    ),
    Case("generation", "--top_k 5", notice="--top_k has no effect without --eval_with_do_generation"),
    Case("generation", "--eval_with_do_generation", notice="no effect without --do_eval or --do_predict"),
    Case(
        "generation",
        "--do_eval --eval_with_do_generation --num_beams 4 --top_p 0.9",
        problem="--num_beams 4 selects beam search and --top_p selects sampling",
        fine="--do_eval --eval_with_do_generation --num_beams 4",
    ),
    Case(
        "generation",
        "--do_eval --eval_with_do_generation --pipeline_parallel_degree 2 --gradient_accumulation_steps 4",
        problem="a pipeline cannot generate token by token. Drop it",
        fine="--do_eval --eval_with_do_generation --tensor_parallel_degree 2",
        world=2,
    ),
    Case(
        "generation",
        "--do_eval --eval_with_do_generation --tensor_parallel_degree 2 --sequence_parallel",
        problem="a single token cannot be split along the sequence",
        world=2,
    ),
    Case(
        "early_stopping",
        "--do_eval --early_stopping_patience 2",
        problem="Add --load_best_model_at_end",
        fine="--do_eval --early_stopping_patience 2 --load_best_model_at_end",
    ),
    Case(
        "minimum_learning_rate",
        "--lr_decay_ratio 0.1 --min_learning_rate 1e-6",
        problem="both set the minimum of the learning rate",
        fine="--lr_decay_ratio 0.1",
    ),
    Case(
        "minimum_learning_rate",
        "--lr_decay_ratio 0.1 --lr_scheduler_type constant",
        notice="--lr_decay_ratio has no effect",
    ),
    # method
    Case(
        "one_method",
        "--lora --prefix_tuning --freeze_layers 2",
        problem="--lora, --prefix_tuning and --freeze_layers choose different methods",
        fine="--freeze_layers 2 --trainable_modules lm_head",
    ),
    Case(
        "method_fits_the_run",
        "--adalora --pipeline_parallel_degree 2 --gradient_accumulation_steps 4",
        problem="AdaLoRA with pipeline_parallel_degree = 2",
        fine="--lora --pipeline_parallel_degree 2 --gradient_accumulation_steps 4",
        world=2,
    ),
    Case("method_fits_the_run", "--prompt_tuning --zero_padding", problem="prompt tuning with --zero_padding"),
    Case("method_fits_the_run", "--prompt_tuning", problem="is not supported for ChatGLM-6B", model="chatglm"),
    Case(
        "method_fits_the_run",
        "--prefix_tuning --prefix_projection",
        problem="--prefix_projection is not supported for GLM",
        fine="--prefix_tuning",
        model="glm",
    ),
    Case("settings_of_methods", "--lora_rank 4", notice="--lora_rank has no effect without --lora or --adalora"),
    Case("settings_of_methods", "--num_prefix_tokens 4 --lora", notice="has no effect without --prefix_tuning"),
    Case("settings_of_methods", "--rslora --adalora", notice="--rslora has no effect without --lora."),
    Case(
        "settings_of_methods",
        "--modules_to_save lm_head --adapter_size 8",
        notice="--adapter_size has no effect",
        fine="--adapter --adapter_size 8",
    ),
    Case(
        "settings_of_methods",
        "--lora_path x",
        problem="lora_path = x needs --lora or --adalora",
        fine="--lora_path x --lora",
    ),
    Case("ranks_of_adalora", "--adalora --adalora_init_rank 4", problem="below lora_rank = 8", fine="--adalora"),
    Case(
        "ranks_of_adalora",
        "--adalora --adalora_warmup_ratio 0.5 --adalora_final_ratio 0.5",
        problem="leave no step in which ranks are reduced",
    ),
    Case(
        "merging",
        "--merge_weights --adapter",
        problem="adapters cannot be merged into the weights of the model",
        fine="--merge_weights --lora",
    ),
    Case("merging", "--merge_weights", notice="--merge_weights has no effect"),
    Case(
        "merging",
        "--merge_weights --lora --sharding stage3 --sharding_parallel_degree 2",
        problem="merge_weights with --sharding stage3",
        fine="--merge_weights --lora --sharding stage2 --sharding_parallel_degree 2",
        world=2,
    ),
    Case(
        "adapters_exist",
        "--dataset_name_or_path both --lora --lora_path there",
        problem="lora_path = there: it has no adapter_config.json",
        fine="--dataset_name_or_path both --lora --lora_path adapter",
        here=True,
    ),
    # shared rules that depend on the entry
    Case(
        "positions",
        "--max_length 129",
        problem="max_length = 129 exceeds the 128",
        fine="--zero_padding --max_seq_length 512",
    ),
    Case("positions", "--max_length 120 --prompt_tuning", problem="num_prompt_tokens = 20 exceeds the 128"),
    Case("fewer_layers", "--num_hidden_layers 2 --continue_training 1", problem="Use --continue_training 0"),
    Case(
        "best_model",
        "--do_eval --load_best_model_at_end --metric_for_best_model bleu",
        problem="bleu needs generated answers. Add --eval_with_do_generation",
        fine="--do_eval --load_best_model_at_end --metric_for_best_model bleu --eval_with_do_generation",
    ),
    Case(
        "best_model",
        "--do_eval --load_best_model_at_end --metric_for_best_model meteor --eval_with_do_generation",
        problem="is not measured. Use one of loss, ppl, bleu",
    ),
]
CASES = [replace(case, entry="finetune") for case in _CASES]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.rule}-{index}" for index, case in enumerate(CASES)])
def test_a_rule_reports_its_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (
        "one.jsonl",
        "both/train.json",
        "both/dev.jsonl",
        "typo/trian.json",
        "typo/dev.json",
        "adapter/adapter_config.json",
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "there").mkdir()
    check(case, tmp_path)


def test_the_flags_without_an_evaluation_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that evaluates, stops early and loads the best model, for data without a dev set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jsonl").touch()
    flags = (
        "--dataset_name_or_path one.jsonl --do_eval --evaluation_strategy epoch --save_strategy epoch "
        "--load_best_model_at_end --early_stopping_patience 2"
    )
    case = Case("dataset_exists", flags, entry="finetune", here=True)
    (problem,), _ = resolve_case(case, flags, tmp_path)
    advised = problem.rpartition(", or use ")[2].rstrip(".")
    assert advised.count("--") == 4
    assert resolve_case(case, f"{flags} {advised}", tmp_path)[0] == []


def test_an_evaluation_that_is_turned_off_is_reported_with_all_that_needs_it(tmp_path: Path) -> None:
    flags = "--do_eval 0 --evaluation_strategy epoch --save_strategy epoch --load_best_model_at_end"
    problems, _ = resolve_case(Case("best_model", flags, entry="finetune"), flags, tmp_path)
    assert [text.split(".")[0] for text in problems] == [
        "evaluation_strategy = epoch and do_eval = false contradict each other",
        "load_best_model_at_end without an evaluation",
    ]
