"""Names in PaddleNLP's commands since 2023 that are not fields here: the new name, or the reason why the setting does not exist.

Four generations of PaddleNLP: A (April 2023, 2.5), B (June 2023, 2.6rc), C (2.6 to 2.8), D (3.0). A test reads the installed
PaddleNLP and fails if one of its arguments is neither a field of RunConfig nor in these tables.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.config.legacy.kinds import Ignored, Refused, Renamed, is_neutral

_OFF = (False,)


def _no_cuda(raw: Any) -> Any:
    return None if is_neutral(raw, (False,)) else "cpu"


def _positive(raw: Any) -> Any:
    return None if is_neutral(raw, (-1, 0)) else raw


def _if_on(raw: Any) -> Any:
    return None if is_neutral(raw, (False,)) else True


OLD_NAMES: dict[str, Renamed | Ignored | Refused] = {
    # --- both scripts
    "sharding_degree": Renamed("sharding_parallel_degree"),  # A to D, deprecated since B
    "no_cuda": Renamed("device", convert=_no_cuda),  # A to D
    "max_evaluate_steps": Renamed("eval_iters", convert=_positive),  # C, D
    "use_async_save": Renamed("async_save", convert=_if_on),  # D
    "benchmark": Ignored("it is not needed. For a short run, use --max_steps", (False,)),  # B, C
    "profiler_options": Ignored("profiling is not part of training", ("",)),  # B
    # --- run_pretrain.py, A to C
    "config_name": Refused(
        "the shape of the model is read from its folder. Put config.json into the folder of --model_name_or_path"
    ),
    "skip_warmup": Ignored("memory maps are not read in advance", (True, False)),
    "initializer_range": Ignored("PaddleNLP never read it. Set it in the model's config.json"),
}


_DATA = Renamed("dataset_name_or_path")
_VERA = "VeRA does not train in PaddleNLP 3.0: its vectors start at zero and are frozen. Use --lora"
_LOKR = "PaddleNLP 3.0 cannot save LoKr adapters, nor split them over ranks. Use --lora"
_REFT = "ReFT fails to train in PaddleNLP 3.0. Use --lora or --adapter"
_OF_REFT = "it belongs to ReFT, which is not supported"
_PISSA = "PaddleNLP 3.0 loads a PiSSA adapter into a model that it does not fit. Use --lora, or --rslora"
_MORA = "merging a MoRA adapter in PaddleNLP 3.0 changes the output of the model. Use --lora with a higher --lora_rank"
_QLORA = "4-bit and 8-bit weights need CUDA kernels that PaddleNLP 3.0 does not include. Use --lora with --bf16"
_QUANT = "quantising a model is not part of fine-tuning"
_SMOOTH = "it belongs to quantisation, which is not part of fine-tuning"

FINETUNE_NAMES: dict[str, Renamed | Ignored | Refused] = {
    # --- data, A and B
    "task_path": _DATA,
    "task_name_or_path": _DATA,
    "task_name": _DATA,
    "dataset_path": _DATA,
    "data_name": _DATA,
    "tgt_length": Renamed("max_length", plus="src_length"),
    "instruction_generation": Ignored("instructions are read in every format", _OFF),
    # --- data, C and D
    "intokens": Renamed("zero_padding"),
    "greedy_zero_padding": Renamed("zero_padding", convert=_if_on),
    "lazy": Ignored("samples are encoded once, before training", (True, False)),
    "autoregressive": Refused(
        "the loss mask is set with --loss_on. To train on prompts as well, use --loss_on all", _OFF
    ),
    "use_pose_convert": Refused("PoSE (training on skipped positions) is not implemented", _OFF),
    "flash_mask": Ignored("attention of packed rows is computed per sample anyway", (True, False)),
    # --- LoRA
    "r": Renamed("lora_rank"),
    "target_modules": Renamed("lora_target_modules"),
    "use_dora": Renamed("dora"),
    "use_rslora": Renamed("rslora"),
    "use_quick_lora": Ignored("it only changes the order of the computation", (True, False)),
    "pissa": Refused(_PISSA, _OFF),
    "lora_use_mixer": Refused("MosLoRA is not implemented. Use --lora", _OFF),
    "use_mora": Refused(_MORA, _OFF),
    "vera": Refused(_VERA, _OFF),
    "vera_rank": Ignored("it belongs to VeRA, which is not supported", (8,)),
    "lokr": Refused(_LOKR, _OFF),
    "lokr_path": Refused(_LOKR),
    "lokr_dim": Ignored("it belongs to LoKr, which is not supported", (8,)),
    "reft": Refused(_REFT, _OFF),
    "layers": Ignored(_OF_REFT, ("all",)),
    "position": Ignored(_OF_REFT, ("f7+l7",)),
    "intervention_type": Ignored(_OF_REFT, ("LoreftIntervention",)),
    "rank": Refused(_OF_REFT + ". For the rank of LoRA, use --lora_rank", (8,)),
    "act_fn": Ignored(_OF_REFT, ("linear",)),
    "add_bias": Ignored(_OF_REFT, _OFF),
    "dropout": Refused(_OF_REFT + ". For the dropout of LoRA, use --lora_dropout", (0.0,)),
    "neftune": Refused("NEFTune (noise on embeddings) is not implemented", _OFF),
    # In transformers, a value such as 5 turns NEFTune on.
    "neftune_noise_alpha": Ignored("it belongs to NEFTune, which is not supported", (0.0,)),
    "use_ssa": Refused("shifted sparse attention is not implemented", _OFF),
    "ssa_group_size_ratio": Ignored("it belongs to shifted sparse attention, which is not supported", (0.25,)),
    # --- evaluation by generation
    "do_generation": Renamed("eval_with_do_generation"),
    "select_topk": Ignored("--top_k alone turns it on", (True, False)),
    "generate_num": Refused("answers are generated for the whole dev set. Use a shorter dev.json", (0,)),
    "min_tgt_length": Refused("answers have no minimum length", (0,)),
    "length_penalty": Refused("beams are always compared by mean log-likelihood per token", (1.0,)),
    "no_repeat_ngram_size": Refused("repetitions in answers cannot be forbidden", (0,)),
    # --- quantisation, B to D
    "weight_quantize_algo": Refused(_QLORA),
    "weight_blocksize": Ignored(_SMOOTH, (64,)),
    "weight_double_quant": Ignored(_SMOOTH, _OFF),
    "weight_double_quant_block_size": Ignored(_SMOOTH, (256,)),
    "qat": Refused(_QUANT, _OFF),
    "qat_type": Ignored(_SMOOTH, ("A8W8",)),
    "quant_type": Ignored(_SMOOTH, ("A8W8",)),
    "do_qat": Refused(_QUANT, _OFF),
    "do_ptq": Refused(_QUANT, _OFF),
    "do_gptq": Refused(_QUANT, _OFF),
    "ptq_step": Ignored(_SMOOTH, (32,)),
    "shift": Ignored(_SMOOTH, _OFF),
    "shift_all_linears": Ignored(_SMOOTH, _OFF),
    "shift_sampler": Ignored(_SMOOTH, ("ema",)),
    "shift_step": Ignored(_SMOOTH, (32,)),
    "smooth": Ignored(_SMOOTH, _OFF),
    "smooth_all_linears": Ignored(_SMOOTH, _OFF),
    "smooth_sampler": Ignored(_SMOOTH, ("none",)),
    "smooth_step": Ignored(_SMOOTH, (32,)),
    "smooth_piecewise_search": Ignored(_SMOOTH, _OFF),
    "smooth_k_piece": Ignored(_SMOOTH, (3,)),
    "smooth_search_piece": Ignored(_SMOOTH, _OFF),
    "gptq_step": Ignored(_SMOOTH, (8,)),
}

_AUTO = "it belongs to semi-automatic parallelism, which is not implemented. Set the *_parallel_degree fields"
_MOE = "none of the supported models is a mixture of experts"
_SEQUENCE = (
    "the attention of a sequence cannot be split over ranks. Use --tensor_parallel_degree with --sequence_parallel"
)
_GPT_ONLY = "it belongs to PaddleNLP's GPT-3, which is not supported"
_DEGREE = (-1, 0, 1)

UNSUPPORTED_NAMES: dict[str, Ignored | Refused] = {
    # --- TrainingArguments: what is trained and how
    "do_export": Refused("export is a separate command. Run paddle-llm export", _OFF),
    "prediction_loss_only": Ignored(
        "evaluation computes losses; --eval_with_do_generation adds generated answers", (False, True)
    ),
    "eval_accumulation_steps": Ignored("evaluation only keeps sums of losses"),
    "num_cycles": Refused("the cosine schedule falls once, from --learning_rate to --min_learning_rate", (0.5,)),
    "bf16_full_eval": Refused("evaluation uses the precision of training", _OFF),
    "fp16_full_eval": Refused("evaluation uses the precision of training", _OFF),
    "minimum_eval_times": Refused("evaluations are set by their interval. Use --eval_steps"),
    "past_index": Refused("no supported model has memory between steps", (-1,)),
    "remove_unused_columns": Ignored("samples only contain the inputs of the model", (True, False)),
    "label_names": Refused("the name of the labels is fixed"),
    "flatten_param_grads": Refused("it is for NPU devices only", _OFF),
    "refined_recompute": Refused(
        "recompute is set for whole layers or by granularity. Use --no_recompute_layers or --recompute_granularity",
        ("",),
    ),
    "to_static": Refused("models are trained in dynamic mode only", _OFF),
    "skip_data_intervals": Refused(
        "steps cannot be skipped by number. To skip steps whose loss is not finite, use --nan_policy skip or rollback; to skip "
        "those whose loss is a spike, --spike_policy skip"
    ),
    "pad_token_id": Ignored("it is read from the model folder", (0,)),
    "count_trained_tokens": Ignored("tokens are always counted, see consumed_tokens in metrics.jsonl", (False, True)),
    # --- TrainingArguments: data
    "dataloader_drop_last": Ignored("the order of samples has no incomplete batch", (False, True)),
    "lazy_data_processing": Ignored("data is tokenised before training", (True, False)),
    "distributed_dataloader": Ignored("every rank reads the data itself", _OFF),
    "ignore_data_skip": Refused("a resumed run always continues at the next sample", _OFF),
    # --- TrainingArguments: logs
    "log_on_each_node": Ignored("one rank of the job writes the log", (True, False)),
    "logging_dir": Ignored("curves are always in <output_dir>/visualdl, so that a resumed run continues them"),
    "logging_strategy": Refused("rows are written every --logging_steps steps", ("steps",)),
    "metrics_output_path": Ignored("metrics are always in <output_dir>/metrics.jsonl"),
    "skip_memory_metrics": Ignored("peak memory is in every row of metrics.jsonl", (True, False)),
    "wandb_api_key": Refused("config.resolved.json would expose it. Set WANDB_API_KEY in the environment"),
    "wandb_http_proxy": Refused("the proxy is read from the environment. Set HTTPS_PROXY"),
    # --- TrainingArguments: checkpoints
    "output_signal_dir": Ignored("a checkpoint is complete when its folder has its final name"),
    "save_on_each_node": Refused("every rank writes its own part of a checkpoint", _OFF),
    "save_sharded_model": Ignored("all layouts use the same checkpoint format", _OFF),
    "load_sharded_model": Ignored("every checkpoint resumes on any layout", _OFF),
    "ordered_save_group_size": Ignored("ranks write at the same time", (0,)),
    "ckpt_quant_stage": Refused("quantised checkpoints do not resume exactly", ("O0",)),
    "ignore_load_lr_and_optim": Refused(
        "a resume restores the complete state. To start a new run from the weights of a checkpoint, use --model_name_or_path CHECKPOINT --continue_training 1",
        _OFF,
    ),
    "ignore_save_lr_and_optim": Refused("a checkpoint without optimizer states cannot be resumed", _OFF),
    "force_reshard_pp": Ignored("every checkpoint resumes on any pipeline", _OFF),
    "unified_checkpoint": Ignored("every checkpoint resumes on any layout", (True, False)),
    "unified_checkpoint_config": Ignored(
        "checkpoints have one format and no switches; its async_save is --async_save", ("",)
    ),
    "save_sharding_stage1_model_include_freeze_params": Refused("checkpoints contain the trained weights", _OFF),
    "pdc_download_ckpt": Refused("Baidu's PaddleCloud is not used", _OFF),
    "pdc_download_timeout": Ignored("Baidu's PaddleCloud is not used", (300,)),
    # --- TrainingArguments: layout
    "local_rank": Ignored("the launcher sets it"),
    "ddp_find_unused_parameters": Ignored("every parameter of these models is used in every step", _OFF),
    "sharding_parallel_mesh_dimension": Refused(_AUTO, ("dp",)),
    "sep_parallel_degree": Refused(_SEQUENCE, _DEGREE),
    "context_parallel_degree": Refused(_SEQUENCE, _DEGREE),
    "split_inputs_sequence_dim": Ignored("sequences are not split over ranks", (True, False)),
    "expert_parallel_degree": Refused(_MOE, _DEGREE),
    "expert_tensor_parallel_degree": Refused(_MOE, _DEGREE),
    "use_expert_parallel": Refused(_MOE, _OFF),
    "expert_max_capacity": Ignored(_MOE, (2**32,)),
    "expert_min_capacity": Ignored(_MOE, (1,)),
    "data_parallel_config": Refused(_AUTO, ("",)),
    "sequence_parallel_config": Refused(_AUTO, ("",)),
    "auto_parallel_resume_form_hybrid_parallel": Refused(_AUTO, _OFF),
    "enable_auto_parallel": Refused(_AUTO, _OFF),
    # --- LlmMetaConfig
    "use_fused_linear": Ignored(_GPT_ONLY, _OFF),
    "use_fused_dropout_add": Ignored(_GPT_ONLY, _OFF),
    "use_fused_linear_cross_entropy": Ignored("the fused kernel only saves memory and is not implemented", _OFF),
    "tensor_parallel_rank": Ignored("the launcher sets it"),
    "tensor_parallel_output": Ignored("the loss reads split logits, which is PaddleNLP's default", (True,)),
    # --- run_pretrain.py and the other scripts of generations C and D
    "use_fast_layer_norm": Ignored(_GPT_ONLY, _OFF),
    "enable_linear_fused_grad_add": Ignored("the fusion only affects speed and is not implemented", _OFF),
    "autotuner_benchmark": Ignored("it is not needed. For a short run, use --max_steps", _OFF),
    "transformer_engine_backend": Ignored("TransformerEngine is not used"),
    "use_fp8": Refused("8-bit training is not implemented. Use --bf16", _OFF),
    "use_intermediate_api": Refused(_AUTO, _OFF),
    "pipeline_schedule_mode": Refused(_AUTO, ("1F1B",)),
    "virtual_pipeline_seg_method": Refused(_AUTO),
    "refined_ops_patterns": Refused(_AUTO),
    "use_long_sequence_strategies": Refused(
        "RoPE scaling is read from the model folder. Set rope_scaling in its config.json", _OFF
    ),
    "strategy_type": Ignored("RoPE scaling is read from the model folder. Set rope_scaling in its config.json"),
    "strategy_name": Ignored("RoPE scaling is read from the model folder. Set rope_scaling in its config.json"),
    "rope_scaling_factor": Refused(
        "RoPE scaling is read from the model folder. Set rope_scaling in its config.json", (1.0,)
    ),
    "from_aistudio": Refused("models are not downloaded from AI Studio. Download the model and give its folder", _OFF),
    "save_to_aistudio": Refused("nothing is uploaded to AI Studio. Upload the output folder yourself", _OFF),
    "aistudio_repo_id": Ignored("AI Studio is not used"),
    "aistudio_repo_private": Ignored("AI Studio is not used", (True, False)),
    "aistudio_repo_license": Ignored("AI Studio is not used"),
    "aistudio_token": Refused("AI Studio is not used, and config.resolved.json would expose it"),
}
