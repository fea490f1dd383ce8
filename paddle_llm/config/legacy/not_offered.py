"""Names of PaddleNLP 3.0 that are no fields of ours, each with the reason that its user is told.

A test reads the installed PaddleNLP and fails when a field of it is neither in RunConfig nor here.
"""

from __future__ import annotations

from paddle_llm.config.legacy.kinds import Refused, Stale

_AUTO = "semi-automatic parallelism is not offered: give the degrees"
_MOE = "mixtures of experts are not offered: remove it"
_SEQUENCE = "splitting the sequence over ranks is not offered: use --tensor_parallel_degree with --sequence_parallel"
_GPT_ONLY = "it belongs to PaddleNLP's GPT-3, which is not offered"
_OFF, _DEGREE = (False,), (-1, 0, 1)

NOT_OFFERED: dict[str, Stale | Refused] = {
    # --- TrainingArguments: what is trained and how
    "do_export": Refused("exporting is a command of its own, not part of training", _OFF),
    "prediction_loss_only": Stale(
        "evaluation computes losses; --eval_with_do_generation adds what is generated", (False, True)
    ),
    "eval_accumulation_steps": Stale("evaluation keeps sums of losses, there is nothing to accumulate"),
    "num_cycles": Refused("cosine falls once, from --learning_rate to --min_learning_rate", (0.5,)),
    "bf16_full_eval": Refused("evaluation computes in the precision of training", _OFF),
    "fp16_full_eval": Refused("evaluation computes in the precision of training", _OFF),
    "minimum_eval_times": Refused("give --eval_steps"),
    "past_index": Refused("no model offered here has memory between steps", (-1,)),
    "remove_unused_columns": Stale("samples hold only what the model reads", (True, False)),
    "label_names": Refused("labels are always called labels"),
    "flatten_param_grads": Refused("it is for NPU devices only", _OFF),
    "refined_recompute": Refused("use --recompute_granularity or --no_recompute_layers", ("",)),
    "to_static": Refused("training in static mode is not offered", _OFF),
    "skip_data_intervals": Refused("--nan_policy skip leaves out steps whose loss is not finite"),
    "pad_token_id": Stale("the model folder says it", (0,)),
    "count_trained_tokens": Stale("tokens are always counted, see consumed_tokens in metrics.jsonl", (False, True)),
    # --- TrainingArguments: data
    "dataloader_drop_last": Stale("the order of samples has no incomplete batch", (False, True)),
    "lazy_data_processing": Stale("data are tokenised before training", (True, False)),
    "distributed_dataloader": Stale("every rank reads the data, no rank needs to send them to others", _OFF),
    "ignore_data_skip": Refused("a resumed run always continues at the next sample", _OFF),
    # --- TrainingArguments: logs
    "log_on_each_node": Stale("one rank of the job writes the log", (True, False)),
    "logging_dir": Stale("curves are always in <output_dir>/visualdl, so that a resumed run continues them"),
    "logging_strategy": Refused("rows are written every --logging_steps", ("steps",)),
    "metrics_output_path": Stale("metrics are always in <output_dir>/metrics.jsonl"),
    "skip_memory_metrics": Stale("peak memory is in every row of metrics.jsonl", (True, False)),
    "wandb_api_key": Refused("config.resolved.json would publish it: set WANDB_API_KEY in the environment"),
    "wandb_http_proxy": Refused("set HTTPS_PROXY in the environment"),
    # --- TrainingArguments: checkpoints
    "output_signal_dir": Stale("a checkpoint is complete when its folder has its final name, no signal is needed"),
    "save_on_each_node": Refused("every rank writes its own part of a checkpoint, wherever it runs", _OFF),
    "save_sharded_model": Stale("checkpoints have one format whether sharded or not", _OFF),
    "load_sharded_model": Refused("PaddleNLP's sharded-model checkpoints are not read", _OFF),
    "use_async_save": Refused("checkpoints are written before the next step begins", _OFF),
    "ordered_save_group_size": Stale("ranks write at the same time", (0,)),
    "ckpt_quant_stage": Refused("quantised checkpoints do not resume exactly", ("O0",)),
    "ignore_load_lr_and_optim": Refused(
        "to start anew from a checkpoint's weights give its folder as --model_name_or_path with --continue_training 1",
        _OFF,
    ),
    "ignore_save_lr_and_optim": Refused("a checkpoint without optimizer states cannot be resumed", _OFF),
    "force_reshard_pp": Refused("a checkpoint is resumed on the layout that wrote it", _OFF),
    "save_sharding_stage1_model_include_freeze_params": Refused("checkpoints hold what is trained", _OFF),
    "pdc_download_ckpt": Refused("Baidu's PaddleCloud is not used here", _OFF),
    "pdc_download_timeout": Stale("Baidu's PaddleCloud is not used here", (300,)),
    # --- TrainingArguments: layout
    "local_rank": Stale("the launcher says it"),
    "ddp_find_unused_parameters": Stale("every parameter of these models is used in every step", _OFF),
    "sharding_parallel_mesh_dimension": Refused(_AUTO, ("dp",)),
    "sep_parallel_degree": Refused(_SEQUENCE, _DEGREE),
    "context_parallel_degree": Refused(_SEQUENCE, _DEGREE),
    "split_inputs_sequence_dim": Stale("sequences are not split over ranks", (True, False)),
    "expert_parallel_degree": Refused(_MOE, _DEGREE),
    "expert_tensor_parallel_degree": Refused(_MOE, _DEGREE),
    "use_expert_parallel": Refused(_MOE, _OFF),
    "expert_max_capacity": Stale(_MOE, (2**32,)),
    "expert_min_capacity": Stale(_MOE, (1,)),
    "data_parallel_config": Refused(_AUTO, ("",)),
    "sequence_parallel_config": Refused(_AUTO, ("",)),
    "auto_parallel_resume_form_hybrid_parallel": Refused(_AUTO, _OFF),
    "enable_auto_parallel": Refused(_AUTO, _OFF),
    # --- LlmMetaConfig
    "use_fused_linear": Stale(_GPT_ONLY, _OFF),
    "use_fused_dropout_add": Stale(_GPT_ONLY, _OFF),
    "use_fused_linear_cross_entropy": Stale("the fused kernel saves memory only and is not offered", _OFF),
    "tensor_parallel_rank": Stale("the launcher says it"),
    "tensor_parallel_output": Stale("the loss reads split logits, as PaddleNLP's default does", (True,)),
    # --- run_pretrain.py and its sisters, generations C and D
    "use_fast_layer_norm": Stale(_GPT_ONLY, _OFF),
    "enable_linear_fused_grad_add": Stale("a fusion for speed alone, not offered", _OFF),
    "autotuner_benchmark": Stale("give --max_steps for a short run", _OFF),
    "transformer_engine_backend": Stale("TransformerEngine is not used"),
    "use_fp8": Refused("training in 8 bits is not offered", _OFF),
    "use_intermediate_api": Refused(_AUTO, _OFF),
    "pipeline_schedule_mode": Refused(_AUTO, ("1F1B",)),
    "virtual_pipeline_seg_method": Refused(_AUTO),
    "refined_ops_patterns": Refused(_AUTO),
    "use_long_sequence_strategies": Refused("set rope_scaling in the model's config.json", _OFF),
    "strategy_type": Stale("set rope_scaling in the model's config.json"),
    "strategy_name": Stale("set rope_scaling in the model's config.json"),
    "rope_scaling_factor": Refused("set rope_scaling in the model's config.json", (1.0,)),
    "from_aistudio": Refused("download the model and give its folder", _OFF),
    "save_to_aistudio": Refused("upload the output folder yourself", _OFF),
    "aistudio_repo_id": Stale("AI Studio is not used"),
    "aistudio_repo_private": Stale("AI Studio is not used", (True, False)),
    "aistudio_repo_license": Stale("AI Studio is not used"),
    "aistudio_token": Refused("AI Studio is not used, and config.resolved.json would publish it"),
}
