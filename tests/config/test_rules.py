"""Cases of every rule between fields; those of fine-tuning are in `test_finetune_rules.py`.

A test fails if a rule has no case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddle_llm.config.rules import RULES
from tests.config.rule_case import Case, check, resolve_case
from tests.config.test_finetune_rules import CASES as FINETUNE_CASES

CASES = [
    # settings
    Case("has_a_task", "--do_train 0", problem="nothing to do", fine="--do_train 0 --do_predict"),
    Case("required", "--input_dir=", problem="input_dir is missing. Give it, for example --input_dir ./data"),
    Case("required", "--output_dir=", problem="output_dir is missing"),
    Case("required", "--model_name_or_path=", problem="model_name_or_path is missing"),
    Case("split_shares", "--split 9,1", problem="expected three shares", fine="--split 9,1,0"),
    Case("split_shares", "--split a,b,c", problem="expected three shares"),
    Case("split_shares", "--split -1,1,1", problem="expected three shares"),
    Case("split_shares", "--split 0,0,0", problem="expected three shares"),
    Case("split_shares", "--do_eval --split 9,0,1", problem="no documents are left to evaluate on"),
    Case("split_shares", "--do_predict --split 9,1,0", problem="no documents are left to predict on"),
    Case("split_shares", "--split 0,1,1", problem="no documents are left to train on"),
    Case("device_name", "--device gpuu", problem="Did you mean gpu?", fine="--device cpu"),
    Case("device_name", "--device gpu:0", problem="Use gpu, and --gpus 0 for the launcher."),
    Case("device_name", "--device npu", problem="npu is not supported"),
    Case("one_precision", "--fp16 --bf16", problem="fp16 and bf16 are both on", fine="--bf16"),
    Case("precision_switches", "--amp_master_grad", notice="no effect without --bf16 or --fp16"),
    Case(
        "precision_switches",
        "--scale_loss 1024",
        notice="no effect without --bf16 or --fp16",
        fine="--fp16 --scale_loss 8",
    ),
    Case("precision_switches", "--bf16 --scale_loss 1024", notice="no effect with --bf16"),
    Case("precision_switches", "--bf16 --amp_master_grad", problem="needs fp16_opt_level = O2, not O1"),
    Case("determinism", "--deterministic 1", notice="no effect on the CPU", fine="--deterministic 0", device="cpu"),
    Case("recompute_switches", "--recompute_granularity core_attn", notice="no effect without --recompute"),
    Case("reporters", "--report_to tensorbord", problem="is unknown. Use visualdl, wandb", fine="--report_to none"),
    Case("reporters", "--report_to wandb visualdl", problem="the package wandb is not installed"),
    Case("reporters", "--report_to all none", problem="all cannot be combined with others"),
    Case("reporters", "--run_name mine", notice="--run_name has no effect", fine="--run_name mine --report_to all"),
    # paths
    Case(
        "tokenizer_exists",
        "--input_dir there --tokenizer_name_or_path there/tokenizer",
        problem="no such folder exists. To train a tokenizer, run paddle-llm tokenizer train",
        fine="--input_dir there --tokenizer_name_or_path there",
        here=True,
    ),
    Case(
        "tokenizer_exists",
        "--input_dir there --output_dir gone/output --tokenizer_name_or_path gone/tokenizer",
        problem="tokenizer_name_or_path = gone/tokenizer: no such folder exists",
        here=True,
    ),
    Case(
        "tokenizer_exists",
        "--input_dir there --tokenizer_name_or_path facebook/llama-7b",
        notice="PaddleNLP will look it up on the network",
        here=True,
    ),
    Case(
        "corpora_exist",
        "--input_dir nowhere",
        problem="input_dir = nowhere: no such folder or corpus (nowhere.bin and .idx) exists",
        fine="--input_dir there",
        here=True,
    ),
    Case("corpora_exist", "--input_dir 0.5 there 0.5 gone", problem="input_dir = gone: no such folder", here=True),
    Case("corpora_exist", "--input_dir there gone", problem="alternating weights and prefixes", here=True),
    Case(
        "weights_exist",
        "--input_dir there --continue_training 1",
        problem="has no weights (model.safetensors",
        fine="--input_dir there --continue_training 0",
        here=True,
    ),
    # schedule
    Case(
        "max_steps",
        "--max_steps 0",
        problem="max_steps = 0 is not positive. Use a positive number",
        fine="--max_steps 1",
    ),
    Case("max_steps", "--max_steps -2", problem="max_steps = -2"),
    Case("max_steps", "--max_steps 5 --num_train_epochs 2", notice="--max_steps 5 takes precedence"),
    Case("learning_rates", "--learning_rate 1e-5 --min_learning_rate 1e-4", problem="is above learning_rate"),
    Case(
        "learning_rates",
        "--lr_scheduler_type constant --min_learning_rate 0",
        notice="no effect with --lr_scheduler_type",
    ),
    Case("learning_rates", "--lr_end 0", notice="--lr_end has no effect with --lr_scheduler_type cosine"),
    Case("warmup", "--warmup_steps 2 --warmup_ratio 0.1", notice="--warmup_steps 2 takes precedence"),
    Case("warmup", "--warmup_steps 2 --lr_scheduler_type constant", notice="Use constant_with_warmup"),
    Case(
        "warmup",
        "--warmup_steps 20 --max_steps 20",
        problem="would never fall",
        fine="--warmup_steps 19 --max_steps 20",
    ),
    Case("warmup", "--warmup_steps 9 --max_steps 20 --decay_steps 9", problem="at step 9"),
    Case(
        "evaluation_strategy",
        "--evaluation_strategy no --do_eval",
        problem="evaluation_strategy = no and do_eval = true contradict each other",
    ),
    Case(
        "evaluation_strategy",
        "--evaluation_strategy steps --do_eval false",
        problem="evaluation_strategy = steps and do_eval = false contradict each other",
    ),
    Case("evaluation_strategy", "--evaluation_strategy steps", notice="turns --do_eval on"),
    Case(
        "evaluation_strategy", "--eval_steps 5", notice="no effect without --do_eval", fine="--eval_steps 5 --do_eval"
    ),
    Case(
        "events_within_the_run",
        "--do_eval --max_steps 9 --eval_steps 10",
        notice="the model is not evaluated before the last step",
    ),
    Case("events_within_the_run", "--max_steps 9 --save_steps 10", notice="no checkpoint is written before the last"),
    Case("events_within_the_run", "--max_steps 9 --logging_steps 10", notice="no loss is logged before the last"),
    Case(
        "best_model", "--load_best_model_at_end", problem="load_best_model_at_end without an evaluation. Add --do_eval"
    ),
    Case(
        "best_model",
        "--load_best_model_at_end --do_eval --save_strategy epoch",
        problem="evaluation_strategy = steps and save_strategy = epoch",
    ),
    Case(
        "best_model",
        "--load_best_model_at_end --do_eval --save_steps 15 --eval_steps 10",
        problem="save_steps = 15 and eval_steps = 10: some saved models would not have been evaluated",
        fine="--load_best_model_at_end --do_eval --save_steps 20 --eval_steps 10",
    ),
    Case(
        "best_model",
        "--load_best_model_at_end --do_eval --metric_for_best_model acuracy",
        problem="is not measured. Use loss or ppl",
        fine="--load_best_model_at_end --do_eval --metric_for_best_model eval_ppl",
    ),
    Case("best_model", "--metric_for_best_model loss", notice="no effect without --load_best_model_at_end"),
    Case("save_steps_count", "--save_steps 5 --save_strategy epoch", notice="--save_steps has no effect"),
    Case(
        "rollbacks",
        "--max_rollbacks 2",
        notice="--max_rollbacks has no effect with --nan_policy stop.",
        fine="--max_rollbacks 2 --nan_policy rollback",
    ),
    Case("resume_and_overwrite", "--resume_from_checkpoint x --overwrite_output_dir", notice="continues from that"),
    Case(
        "resume_and_overwrite",
        "--do_train 0 --do_eval --resume_from_checkpoint x",
        problem="do_train = false: only a training run can be resumed. To evaluate a trained model",
    ),
    # layout
    Case("sharding_stages", "--sharding stage9", problem="stage9 is unknown", fine="--sharding stage1", world=2),
    Case("sharding_stages", "--sharding stage1 stage2", problem="names several stages. Use one stage", world=2),
    Case("sharding_stages", "--sharding stage2 oflod", problem="Did you mean offload?", world=2),
    Case(
        "sharding_stages",
        "--sharding offload",
        problem="offload needs a stage. Use --sharding stage2 offload",
        fine="--sharding stage1 offload",
        world=2,
    ),
    Case(
        "sharded_weights",
        "--sharding stage3 --pipeline_parallel_degree 2 --gradient_accumulation_steps 8",
        problem="gather its weights for each of the 8 micro-batches",
        fine="--sharding stage3 --tensor_parallel_degree 2",
        world=4,
    ),
    Case(
        "sharded_weights",
        "--sharding stage3 --tensor_parallel_degree 2 --bf16",
        notice="keeps a 16-bit copy of its weights",
        fine="--sharding stage3 --tensor_parallel_degree 2 --bf16 --recompute",
        world=4,
    ),
    Case(
        "offload",
        "--sharding stage1 offload --bf16 --fp16_opt_level O2 --amp_master_grad "
        "--sharding_parallel_config split_param enable_fuse_optimizer_states",
        problem="fused optimizer states are one block of device memory",
        fine="--sharding stage2 offload --bf16 --fp16_opt_level O2 --amp_master_grad "
        "--sharding_parallel_config split_param enable_fuse_optimizer_states",
        world=2,
    ),
    Case("virtual_stages", "--virtual_pp_degree 2", problem="virtual stages need a pipeline. Drop virtual_pp_degree"),
    Case(
        "virtual_stages",
        "--virtual_pp_degree 2 --pipeline_parallel_degree 2 --gradient_accumulation_steps 8",
        problem="virtual stages need more than 2 pipeline stages",
        world=2,
    ),
    Case(
        "virtual_stages",
        "--virtual_pp_degree 2 --pipeline_parallel_degree 4 --gradient_accumulation_steps 7",
        problem="gradient_accumulation_steps = 7: virtual stages need two micro-batches per pipeline stage. Use --gradient_accumulation_steps 8 or more",
        fine="--virtual_pp_degree 2 --pipeline_parallel_degree 4 --gradient_accumulation_steps 8",
        world=4,
        shape=(("num_hidden_layers", 8),),
    ),
    Case(
        "pipeline_bubble",
        "--pipeline_parallel_degree 2 --gradient_accumulation_steps 1",
        notice="idle 50% of the time",
        fine="--pipeline_parallel_degree 2 --gradient_accumulation_steps 8",
        world=2,
    ),
    Case(
        "evaluation_batch_with_pipeline",
        "--pipeline_parallel_degree 2 --gradient_accumulation_steps 8 --do_eval --per_device_eval_batch_size 4",
        notice="per_device_eval_batch_size is 8 with a pipeline",
        fine="--pipeline_parallel_degree 2 --gradient_accumulation_steps 8 --do_eval --per_device_eval_batch_size 8",
        world=2,
    ),
    Case(
        "sequence_parallel",
        "--sequence_parallel",
        problem="with tensor_parallel_degree = 1: there are no ranks to split the sequence over",
    ),
    Case(
        "sequence_parallel",
        "--sequence_parallel --tensor_parallel_degree 2 --max_seq_length 33",
        problem="tensor_parallel_degree = 2 does not divide max_seq_length = 33",
        fine="--sequence_parallel --tensor_parallel_degree 2",
        world=2,
    ),
    Case("sequence_parallel", "--fuse_sequence_parallel_allreduce", notice="no effect without --sequence_parallel"),
    Case(
        "optimizer_variants",
        "--optim adamw_mini --tensor_parallel_degree 2",
        problem="cannot split its states over tensor parallel ranks. Use --optim adamw",
        world=2,
    ),
    Case(
        "optimizer_variants",
        "--optim adamw_custom",
        notice="only adamw is proven to give the same result in every layout",
        fine="--optim adamw",
        world=2,
    ),
    # switches
    Case(
        "switches_exist",
        "--tensor_parallel_config enable_mp_async_allreduc",
        problem="Did you mean enable_mp_async_allreduce?",
    ),
    Case("switches_exist", "--pipeline_parallel_config disable_non_batch_p2p_comm", problem="is unknown"),
    Case("switches_exist", "--sharding_parallel_config zzz", problem="Use enable_stage1_tensor_fusion"),
    Case("switches_have_an_effect", "--pipeline_parallel_config enable_timer", notice="pipeline_parallel_degree is 1"),
    Case(
        "switches_have_an_effect",
        "--tensor_parallel_degree 2 --tensor_parallel_config enable_mp_skip_c_identity",
        notice="enable_mp_skip_c_identity has no effect: it needs enable_mp_async_allreduce",
        fine="--tensor_parallel_degree 2 --tensor_parallel_config enable_mp_skip_c_identity enable_mp_async_allreduce",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--tensor_parallel_degree 2 --tensor_parallel_config enable_sp_async_reduce_scatter",
        notice="has no effect: it needs --sequence_parallel",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--tensor_parallel_degree 2 --tensor_parallel_config enable_delay_scale_loss",
        notice="gradient_accumulation_steps is 1",
        fine="--tensor_parallel_degree 2 --gradient_accumulation_steps 2 --tensor_parallel_config enable_delay_scale_loss",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--tensor_parallel_degree 2 --pipeline_parallel_degree 2 --tensor_parallel_config enable_delay_scale_loss",
        notice="it belongs in --pipeline_parallel_config",
        world=4,
    ),
    Case(
        "switches_have_an_effect",
        "--pipeline_parallel_degree 2 --pipeline_parallel_config enable_dp_comm_overlap",
        notice="data_parallel_degree is 1",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--pipeline_parallel_degree 2 --pipeline_parallel_config enable_sharding_comm_overlap",
        notice="sharding_parallel_degree is 1",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--sharding stage2 --pipeline_parallel_degree 2 --pipeline_parallel_config enable_sharding_comm_overlap",
        notice="enable_sharding_comm_overlap has no effect: it is for stage 1; --sharding stage2 reduces",
        world=4,
    ),
    Case(
        "switches_have_an_effect",
        "--pipeline_parallel_degree 2 --pipeline_parallel_config disable_partial_send_recv",
        notice="tensor_parallel_degree is 1",
        fine="--pipeline_parallel_degree 2 --tensor_parallel_degree 1 --pipeline_parallel_config disable_p2p_cache_shape",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--pipeline_parallel_degree 2 --pipeline_parallel_config enable_overlap_p2p_comm",
        notice="it needs virtual_pp_degree above 1",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--sharding stage2 --sharding_parallel_config enable_stage1_tensor_fusion split_param",
        notice="enable_stage1_tensor_fusion and split_param have no effect: it is for stage 1",
        fine="--sharding stage1 --sharding_parallel_config enable_stage1_tensor_fusion",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--sharding stage1 --sharding_parallel_config enable_stage2_overlap",
        notice="enable_stage2_overlap has no effect: it is for stage 2",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--sharding stage2 --sharding_parallel_config enable_stage2_overlap",
        notice="reductions overlap with the backward pass if the device supports it",
        world=2,
    ),
    Case(
        "switches_have_an_effect",
        "--sharding stage1 --pipeline_parallel_degree 2 --sharding_parallel_config enable_stage1_overlap",
        notice="enable_sharding_comm_overlap in --pipeline_parallel_config",
        world=4,
    ),
    Case(
        "settings_of_switches_have_an_effect",
        "--sharding_comm_buffer_size_MB 64",
        notice="--sharding_comm_buffer_size_MB has no effect: nothing is sharded",
        fine="--sharding_comm_buffer_size_MB 64 --sharding stage2",
        world=2,
    ),
    Case(
        "settings_of_switches_have_an_effect",
        "--sharding_comm_buffer_size_MB 64 --sharding stage1",
        notice="stage 1 sends parameters one by one",
        fine="--sharding_comm_buffer_size_MB 64 --sharding stage1 --sharding_parallel_config enable_stage1_overlap",
        world=2,
    ),
    Case(
        "settings_of_switches_have_an_effect",
        "--hybrid_parallel_topo_order sharding_first --pipeline_parallel_degree 2",
        notice="this layout has pp2 x sharding1",
        fine="--hybrid_parallel_topo_order sharding_first --pipeline_parallel_degree 2 --sharding stage1",
        world=4,
    ),
    Case(
        "pipeline_switches",
        "--pipeline_parallel_config use_dualpipev",
        problem="the schedules are 1F1B and interleaved",
    ),
    Case(
        "pipeline_switches",
        "--pipeline_parallel_degree 2 --pipeline_parallel_config enable_dp_comm_overlap",
        problem="wrong gradients in Paddle",
        world=4,
    ),
    Case(
        "pipeline_switches",
        "--pipeline_parallel_degree 2 --sharding stage1 --pipeline_parallel_config enable_sharding_comm_overlap",
        problem="needs amp_master_grad. Add --amp_master_grad",
        world=4,
    ),
    Case(
        "pipeline_switches",
        "--pipeline_parallel_degree 2 --sharding stage1 --sharding_parallel_degree 2 --bf16 --fp16_opt_level O2 "
        "--amp_master_grad --pipeline_parallel_config enable_sharding_comm_overlap",
        problem="shard over all 4 ranks",
        world=8,
    ),
    Case(
        "pipeline_switches",
        "--pipeline_parallel_degree 2 --tensor_parallel_degree 2 --sequence_parallel",
        notice="partial sends are turned off",
        fine="--pipeline_parallel_degree 2 --tensor_parallel_degree 2 --sequence_parallel "
        "--pipeline_parallel_config disable_partial_send_recv",
        world=4,
    ),
    Case(
        "sharding_switches",
        "--sharding stage1 --bf16 --fp16_opt_level O2 --amp_master_grad "
        "--sharding_parallel_config enable_stage1_broadcast_overlap split_param",
        problem="enable_stage1_broadcast_overlap cannot be combined with split_param",
        world=2,
    ),
    Case(
        "sharding_switches",
        "--sharding stage1 --sharding_parallel_config enable_stage1_allgather_overlap",
        problem="enable_stage1_allgather_overlap needs split_param",
        fine="--sharding stage2 --sharding_parallel_config enable_stage1_allgather_overlap",
        world=2,
    ),
    Case(
        "sharding_switches",
        "--sharding stage1 --sharding_parallel_config enable_fuse_optimizer_states",
        problem="enable_fuse_optimizer_states needs split_param",
        world=2,
    ),
    Case(
        "sharding_switches",
        "--sharding stage1 --sharding_parallel_config split_param",
        problem="needs amp_master_grad. Add --amp_master_grad",
        world=2,
    ),
    Case(
        "sharding_switches",
        "--sharding stage1 --logging_steps 1 --sharding_parallel_config enable_stage1_broadcast_overlap",
        problem="needs logging_steps above 1",
        fine="--sharding stage1 --sharding_parallel_config enable_stage1_broadcast_overlap",
        world=2,
    ),
    # model
    Case("family", "", problem="belongs to the family mamba, which is not supported", shape=(("model_type", "mamba"),)),
    Case("family", "--model_type bloom", problem="model_type = bloom, but", fine="--model_type llama"),
    Case("family", "--model_type llama", problem="chatglm_v2", fine="--model_type chatglm2", model="chatglm2"),
    Case(
        "families_with_pipeline",
        "--pipeline_parallel_degree 2",
        problem="no pipeline for ChatGLM-6B.",
        world=2,
        model="chatglm",
    ),
    Case(
        "families_with_sequence_parallel",
        "--sequence_parallel --tensor_parallel_degree 2",
        problem="not supported for BLOOM",
        world=2,
        model="bloom",
    ),
    Case(
        "heads",
        "--tensor_parallel_degree 3",
        problem="Use one of 1, 2, 4.",
        world=3,
        shape=(("intermediate_size", 171),),
    ),
    Case("heads", "--tensor_parallel_degree 2", problem="width 173", world=2, shape=(("intermediate_size", 173),)),
    Case(
        "heads",
        "--tensor_parallel_degree 4",
        notice="2 key-value heads for 4 tensor parallel ranks: every rank keeps all key-value heads",
        fine="--data_parallel_degree 4",
        world=4,
        shape=(("num_key_value_heads", 2),),
    ),
    Case(
        "heads",
        "--tensor_parallel_degree 4 --fuse_attention_qkv",
        problem="cannot be in one matrix",
        world=4,
        shape=(("num_key_value_heads", 2),),
    ),
    Case("heads", "--tensor_parallel_degree 4", problem="Use one of 1, 2.", world=4, model="chatglm2"),
    Case("head_width", "", problem="4 heads of width 32 do not add up to hidden_size = 64", shape=(("head_dim", 32),)),
    Case("layers", "--pipeline_parallel_degree 5", problem="has 4 layers: a stage would be empty", world=5),
    Case("layers", "--pipeline_parallel_degree 3", notice="4 layers for 3 pipeline stages", world=3),
    Case(
        "layers",
        "--pipeline_parallel_degree 4 --virtual_pp_degree 2 --gradient_accumulation_steps 8",
        problem="does not divide the 4 layers of the model. Drop virtual_pp_degree",
        world=4,
    ),
    Case(
        "layers",
        "--pipeline_parallel_degree 3 --virtual_pp_degree 3 --gradient_accumulation_steps 8",
        problem="does not divide the 12 layers of the model. Use virtual_pp_degree 2 or 4",
        fine="--pipeline_parallel_degree 3 --virtual_pp_degree 2 --gradient_accumulation_steps 8",
        world=3,
        shape=(("num_hidden_layers", 12),),
    ),
    Case(
        "vocabulary",
        "--tensor_parallel_degree 4",
        notice="vocabulary padded from 127 to 128",
        fine="--data_parallel_degree 4",
        world=4,
        shape=(("vocab_size", 127),),
    ),
    Case("positions", "--max_seq_length 129", problem="exceeds the 128 positions", fine="--max_seq_length 128"),
    Case("fewer_layers", "--num_hidden_layers 2 --continue_training 1", problem="its weights cannot be loaded"),
    Case("layers_not_recomputed", "--recompute --no_recompute_layers 0 4", problem="is not a layer of"),
    Case("dropout", "--hidden_dropout_prob 0.1", problem="LLaMA has no dropout", fine="--hidden_dropout_prob 0"),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.rule}-{index}" for index, case in enumerate(CASES)])
def test_a_rule_reports_its_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    check(case, tmp_path)


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in RULES} == {case.rule for case in (*CASES, *FINETUNE_CASES)}


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}])
def test_scaled_positions_may_be_exceeded(tmp_path: Path, scaling: dict[str, Any]) -> None:
    case = Case("positions", "", shape=(("rope_scaling", scaling),))
    assert resolve_case(case, "--max_seq_length 200", tmp_path)[0] == []


def test_alibi_has_no_limit(tmp_path: Path) -> None:
    assert resolve_case(Case("positions", "", model="bloom"), "--max_seq_length 4096", tmp_path)[0] == []
