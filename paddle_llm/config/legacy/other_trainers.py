"""Keys of other trainers' configs, and their counterparts here.

These keys are never translated, because the same name often has a slightly different meaning. The message names the counterpart,
and the user decides. Sources: the argument classes of transformers 4.55, TRL 0.21, PEFT 0.17, accelerate
1.10, DeepSpeed 0.17, LLaMA-Factory 0.9, ms-swift 3, axolotl 0.12, PaddleFormers 0.2 and Megatron-LM core 0.13.
"""

from __future__ import annotations

import re
from typing import Any

_NO = "There is no counterpart"
_STAGES = "--sharding stage1, stage2 or stage3 shards optimizer states, gradients or weights, as ZeRO 1, 2 and 3 do"
_RLHF = "Preference and reinforcement learning are not supported. Use rows with prompts and answers"
_QUANT = "Training over quantised weights is not supported. Use --lora with --bf16"
_DATA = "--dataset_name_or_path names a file, a folder with train.json and dev.json, or a weighted blend"
_EVAL = "Put dev.json beside train.json and name the folder with --dataset_name_or_path"
_TEMPLATE = "--chat_template names a template or a Jinja file"
_LAUNCH = (
    "Give --nproc_per_node, --nnodes and --master to paddle-llm pretrain or finetune, or to paddle.distributed.launch"
)
_HUB = "Nothing is uploaded. Copy the output folder"
_DEFAULT = "It does not affect the training. Remove it"
_ROWS = "--data_format names the format of the rows; auto detects it from their keys"
_FREEZE = "--freeze_layers and --trainable_modules choose the trained weights"
_MEGATRON_MODEL = "The shape of the network is in the config.json of --model_name_or_path"
_LENGTH = "--max_length is the length of a sample of fine-tuning, --max_seq_length of pretraining and of a packed row"
_LORA = "Use --lora, with --lora_rank, --lora_alpha and --lora_dropout"
_SAMPLED = "Sampling is set with --temperature, --top_p and --top_k"
_COMPILE = "Compilation is not supported"
_FSDP = "Use --sharding stage3 (weights, gradients and optimizer states) instead"
_STEP = "--per_device_train_batch_size x --gradient_accumulation_steps x data-parallel ranks is the global batch"

# Name -> what to use. Grouped by origin; a key that several trainers use is listed under the first.
COUNTERPARTS: dict[str, str] = {
    # --- DeepSpeed, as a key and as a file
    **dict.fromkeys(("deepspeed", "deepspeed_config", "deepspeed_config_file", "use_deepspeed"), _STAGES),
    "zero_optimization": _STAGES,
    "zero_stage": _STAGES,
    "zero3_init_flag": _STAGES,
    "deepspeed_plugin": _STAGES,
    "train_batch_size": _STEP,
    "train_micro_batch_size_per_gpu": "Use --per_device_train_batch_size",
    "gradient_clipping": "Use --max_grad_norm",
    "steps_per_print": "Use --logging_steps",
    "offload_optimizer_device": "Use --sharding 'stage2 offload'",
    "offload_param_device": "Use --sharding 'stage3 offload'",
    "offload_optimizer": "Use --sharding 'stage2 offload'",
    "zero_allow_untested_optimizer": _DEFAULT,
    "wall_clock_breakdown": "Use --skip_profile_timer false",
    "activation_checkpointing": "Use --recompute",
    # --- accelerate and FSDP
    **dict.fromkeys(("fsdp", "fsdp_config", "fsdp_min_num_params", "use_fsdp", "fsdp_version"), _FSDP),
    "fsdp_transformer_layer_cls_to_wrap": _FSDP,
    "fsdp_sharding_strategy": _FSDP,
    "mixed_precision": "Use --bf16 or --fp16",
    **dict.fromkeys(
        ("compute_environment", "distributed_type", "num_processes", "num_machines", "machine_rank", "main_process_ip",
         "main_process_port", "main_training_function", "rdzv_backend", "same_network", "downcast_bf16", "tpu_env",
         "nproc_per_node", "nnodes", "gpu_ids", "master_addr", "master_port", "node_rank", "local_world_size"),
        _LAUNCH,
    ),
    # --- options of paddle.distributed.launch
    **dict.fromkeys(("ips", "start_port", "master", "nproc"), _LAUNCH),
    **dict.fromkeys(("devices", "gpus"), "Give --gpus 0,1,... to paddle-llm pretrain or finetune, or to paddle.distributed.launch"),
    **dict.fromkeys(("max_restart", "max_restarts"), "Give --max_restarts N to paddle-llm pretrain or finetune"),
    **dict.fromkeys(("job_id", "elastic_level", "elastic_timeout", "host"), "It is for python -m paddle.distributed.launch alone"),
    # --- transformers' TrainingArguments
    "eval_strategy": "Use --evaluation_strategy",
    "gradient_checkpointing": "Use --recompute",
    "gradient_checkpointing_kwargs": "Use --recompute_granularity and --recompute_use_reentrant",
    "gradient_checkpoint": "Use --recompute",
    "label_smoothing_factor": "Use --label_smoothing (fine-tuning)",
    "lr_scheduler_kwargs": "Use --min_learning_rate, --decay_steps, --lr_end and --power",
    "use_cpu": "Use --device cpu",
    "use_mps_device": "Use --device cpu or gpu",
    "full_determinism": "Use --deterministic 1 (GPU; a CPU always is) and --seed",
    "per_gpu_train_batch_size": "Use --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "Use --per_device_eval_batch_size",
    "group_by_length": "Use --zero_padding, which packs samples into rows",
    "length_column_name": "Lengths are counted automatically. Remove it",
    "optim_args": "Use --adam_beta1, --adam_beta2 and --adam_epsilon",
    "adafactor": f"{_NO}. Use --optim adamw",
    "optim_target_modules": f"GaLore and APOLLO are not supported. {_LORA}",
    "auto_find_batch_size": f"{_NO}. Set --per_device_train_batch_size; `paddle-llm rehearse` checks the rest",
    "torch_dtype": "Use --bf16 or --fp16, with --fp16_opt_level O2 for weights in 16 bits",
    "dtype": "Use --bf16 or --fp16, with --fp16_opt_level O2 for weights in 16 bits",
    "save_safetensors": "The format of model/ is fixed. Remove it",
    "save_only_model": "A checkpoint always contains the state for a resume; model/ contains only the weights",
    "eval_on_start": f"{_NO}. Run once with --do_eval and without --do_train",
    "eval_delay": f"{_NO}. Use --eval_steps",
    "include_for_metrics": "Evaluation computes loss and perplexity; --eval_with_do_generation adds scores",
    "include_inputs_for_metrics": "Evaluation computes loss and perplexity; --eval_with_do_generation adds scores",
    "predict_with_generate": "Use --eval_with_do_generation",
    "generation_max_length": "Use --generation_max_new_tokens",
    "generation_num_beams": "Use --num_beams",
    "do_sample": _SAMPLED,
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo", "jit_mode_eval", "use_ipex"), _COMPILE
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
         "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token", "use_hf", "hub_dataset_id"),
        _HUB,
    ),
    **dict.fromkeys(
        ("_n_gpu", "accelerator_config", "average_tokens_across_devices", "batch_eval_metrics", "dataloader_persistent_workers",
         "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
         "ddp_timeout", "debug", "eval_do_concat_batches", "eval_use_gather_object", "fp16_backend", "half_precision_backend",
         "include_num_input_tokens_seen", "include_tokens_per_second", "log_level", "log_level_replica", "logging_nan_inf_filter",
         "mp_parameters", "ray_scope", "restore_callback_states_from_checkpoint", "tf32", "torch_empty_cache_steps",
         "tpu_metrics_debug", "tpu_num_cores", "use_legacy_prediction_loop", "parallelism_config", "project", "trackio_space_id"),
        _DEFAULT,
    ),
    "use_liger_kernel": "Use --use_fused_rms_norm, --use_fused_rope and --use_flash_attention",
    "liger_kernel_config": "Use --use_fused_rms_norm, --use_fused_rope and --use_flash_attention",
    "enable_liger_kernel": "Use --use_fused_rms_norm, --use_fused_rope and --use_flash_attention",
    "attn_implementation": "Use --use_flash_attention",
    "flash_attn": "Use --use_flash_attention",
    "attn_impl": "Use --use_flash_attention",
    "flash_attention": "Use --use_flash_attention",
    "trust_remote_code": "Code in a model folder is never run. Remove it",
    "cache_dir": "Nothing is downloaded into a cache. Give local folders",
    "revision": "Download the revision, and name its folder with --model_name_or_path",
    "model_revision": "Download the revision, and name its folder with --model_name_or_path",
    "token": "Nothing is downloaded with a token. Remove it",
    "hf_hub_token": "Nothing is downloaded with a token. Remove it",
    # --- TRL and PEFT
    "dataset_text_field": _ROWS,
    "dataset_kwargs": _ROWS,
    "dataset_config": "Name the files themselves with --dataset_name_or_path",
    "dataset_train_split": "Name the files themselves with --dataset_name_or_path",
    "dataset_test_split": _EVAL,
    "dataset_num_proc": "Rows are encoded once, before training. Remove it",
    "assistant_only_loss": "Use --loss_on answers (the default) or --loss_on all",
    "completion_only_loss": "Use --loss_on answers (the default) or --loss_on all",
    "eos_token": "It is read from the tokenizer's files: eos_token in tokenizer_config.json",
    "pad_token": "It is read from the tokenizer's files: pad_token in tokenizer_config.json",
    "chat_template_path": _TEMPLATE,
    "packing_strategy": "Use --zero_padding",
    "padding_free": "Use --zero_padding",
    "eval_packing": "Evaluation is not packed. Remove it",
    "use_peft": _LORA,
    "lora_modules_to_save": "Use --modules_to_save",
    "lora_task_type": "Only language models are trained. Remove it",
    "task_type": "Only language models are trained. Remove it",
    "peft_type": _LORA,
    "bias": "Biases are not trained with LoRA. Use --modules_to_save",
    **dict.fromkeys(("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "quantization_config"), _QUANT),
    **dict.fromkeys(("beta", "ref_model", "reward_model", "loss_type", "precompute_ref_log_probs", "num_generations"), _RLHF),
    # --- LLaMA-Factory
    "stage": "finetune_generation.py trains on instructions (sft), run_pretrain.py on text (pt); preference learning is not supported",
    "finetuning_type": "For full, set nothing; for lora, --lora; for freeze, --freeze_layers. --help lists the other methods",
    "template": _TEMPLATE,
    "dataset": _DATA,
    "dataset_dir": f"{_DATA}; give the complete path",
    "media_dir": "Images, audio and video are not read",
    "eval_dataset": _EVAL,
    "val_size": f"{_NO}: evaluation rows are a separate file. {_EVAL}",
    "cutoff_len": _LENGTH,
    "max_samples": f"{_NO}. Give a shorter file, or --max_steps",
    "overwrite_cache": "Rows are encoded at every start. Remove it",
    "preprocessing_num_workers": "Rows are encoded once, before training. Remove it",
    "preprocessing_batch_size": "Rows are encoded once, before training. Remove it",
    "tokenized_path": "Encoded rows are not stored. Remove it",
    "streaming": "All rows are read before training. Remove it",
    "buffer_size": "All rows are read before training. Remove it",
    "mix_strategy": "Weights in --dataset_name_or_path mix files: '0.3 a.jsonl 0.7 b.jsonl'",
    "interleave_probs": "Weights in --dataset_name_or_path mix files: '0.3 a.jsonl 0.7 b.jsonl'",
    "train_on_prompt": "Use --loss_on all",
    "mask_history": "Use --loss_on last",
    "neat_packing": "Use --zero_padding: rows are packed without attention between samples",
    "tool_format": "The chat template determines how tools are written. Remove it",
    "default_system": "Write the system text into the rows",
    "enable_thinking": "The rows and the chat template determine it. Remove it",
    "lora_target": "Use --lora_target_modules (all-linear: all linear layers)",
    "additional_target": "Use --modules_to_save",
    "loraplus_lr_ratio": "Use --lora_plus_scale",
    "create_new_adapter": f"{_NO}. --lora_path continues an adapter",
    "adapter_name_or_path": "Use --lora_path",
    "adapters": "Use --lora_path",
    "resume_adapter": "Use --lora_path",
    "freeze_trainable_layers": "Use --freeze_layers",
    "freeze_trainable_modules": "Use --trainable_modules",
    "freeze_extra_modules": "Use --trainable_modules",
    "freeze_parameters": _FREEZE,
    "freeze_llm": _FREEZE,
    "freeze_vit": "Images are not read. Remove it",
    "freeze_vision_tower": "Images are not read. Remove it",
    "image_max_pixels": "Images are not read. Remove it",
    "video_max_pixels": "Video is not read. Remove it",
    "plot_loss": "Curves are in the output folder: paddle-llm board OUTPUT_DIR",
    "compute_accuracy": "Evaluation computes loss and perplexity; --eval_with_do_generation adds exact_match",
    "infer_backend": "Generation is a separate command: paddle-llm generate",
    "export_dir": "Export is a separate command: paddle-llm export",
    "rope_scaling": "Set rope_scaling in the config.json of the model",
    "resize_vocab": "The vocabulary is not resized. Add the rows to the model's embeddings first",
    "add_tokens": "No tokens are added. Add them to the tokenizer and the model first",
    "quantization_bit": _QUANT,
    "quantization_method": _QUANT,
    "double_quantization": _QUANT,
    "upcast_layernorm": "Norms are computed in fp32. Remove it",
    "pure_bf16": "Use --bf16 with --fp16_opt_level O2",
    "use_unsloth": "Use --use_fused_rms_norm, --use_fused_rope and --use_flash_attention",
    "shift_attn": "Shifted sparse attention is not supported",
    "use_galore": f"GaLore is not supported. {_LORA}",
    "use_badam": f"BAdam is not supported. {_LORA}",
    "use_swanlab": "Use --report_to visualdl, wandb or tensorboard",
    "ray_run_name": _LAUNCH,
    "ray_num_workers": _LAUNCH,
    **dict.fromkeys(("pref_beta", "pref_loss", "pref_ftx", "ref_model_adapters", "reward_model_type", "ppo_epochs"), _RLHF),
    # --- ms-swift
    "model": "Use --model_name_or_path",
    "model_id_or_path": "Use --model_name_or_path",
    "train_type": "For full, set nothing; for lora, --lora. --help lists the other methods",
    "tuner_type": "For full, set nothing; for lora, --lora. --help lists the other methods",
    "sft_type": "For full, set nothing; for lora, --lora. --help lists the other methods",
    "tuner_backend": "LoRA is built in. Remove it",
    "val_dataset": _EVAL,
    "split_dataset_ratio": f"{_NO}: evaluation rows are a separate file. {_EVAL}",
    "custom_dataset_info": "Name the file itself with --dataset_name_or_path",
    "columns": _ROWS,
    "system": "Write the system text into the rows",
    "truncation_strategy": "Use --long_samples truncate, drop or refuse",
    "loss_scale": "Use --loss_on, or `loss` and `weight` in the rows",
    "agent_template": "The chat template determines how tools are written. Remove it",
    "lazy_tokenize": "Rows are encoded once, before training. Remove it",
    "load_from_cache_file": "Rows are encoded at every start. Remove it",
    "strict": "Bad rows are refused; --skip_bad_rows skips them",
    "dataset_shuffle": "Samples are shuffled in every epoch. Use --data_seed for another order",
    "train_dataloader_shuffle": "Samples are shuffled in every epoch. Use --data_seed for another order",
    "disable_shuffling": f"{_NO}. Use --data_seed for another order",
    "create_checkpoint_symlink": "The newest checkpoint is found by its number. Remove it",
    "add_version": "--output_dir is used as it is. Remove it",
    "model_author": "`paddle-llm data self-cognition --author` writes such rows",
    "model_name": "Use --model_name_or_path; `paddle-llm data self-cognition --name` writes rows about the model's name",
    "quant_method": _QUANT,
    "quant_bits": _QUANT,
    "rlhf_type": _RLHF,
    "max_pixels": "Images are not read. Remove it",
    "external_plugins": "Plugins are not loaded. Remove it",
    # --- axolotl
    "base_model": "Use --model_name_or_path",
    "base_model_config": "Use --model_name_or_path",
    "tokenizer_config": "Use --tokenizer_name_or_path",
    "tokenizer_type": "It is read from the tokenizer's files. Remove it",
    "datasets": _DATA,
    "test_datasets": _EVAL,
    "dataset_prepared_path": "Encoded rows are not stored. Remove it",
    "val_set_size": f"{_NO}: evaluation rows are a separate file. {_EVAL}",
    "sequence_len": _LENGTH,
    "sample_packing": "Use --zero_padding",
    "eval_sample_packing": "Evaluation is not packed. Remove it",
    "pad_to_sequence_len": "Use --pad_to_max_length",
    "train_on_inputs": "Use --loss_on all",
    "num_epochs": "Use --num_train_epochs",
    "optimizer": "Use --optim adamw, --learning_rate, --weight_decay, --adam_beta1 and --adam_beta2",
    "lr_scheduler": "Use --lr_scheduler_type",
    "scheduler": "Use --lr_scheduler_type, --warmup_steps and --min_learning_rate",
    "evals_per_epoch": "Use --eval_steps, or --evaluation_strategy epoch",
    "saves_per_epoch": "Use --save_steps, or --save_strategy epoch",
    "lora_target_linear": "Use --lora_target_modules all-linear",
    "lora_fan_in_fan_out": "The layout of the weights is detected. Remove it",
    "lora_model_dir": "Use --lora_path",
    "relora_steps": f"ReLoRA is not supported. {_LORA}",
    "special_tokens": "Special tokens are in the tokenizer's files",
    "tokens": "Special tokens are in the tokenizer's files",
    "chat_template_jinja": _TEMPLATE,
    "roles_to_train": "Use --loss_on",
    "unfrozen_parameters": "Use --trainable_modules",
    "gradient_accumulation": "Use --gradient_accumulation_steps",
    "strict_attention": "Packed samples never attend to each other. Remove it",
    "xformers_attention": "Use --use_flash_attention",
    "sdp_attention": "Use --use_flash_attention",
    "wandb_project": "Use --report_to wandb, and WANDB_PROJECT in the environment",
    "wandb_entity": "Use --report_to wandb, and WANDB_ENTITY in the environment",
    "wandb_name": "Use --report_to wandb with --run_name",
    "wandb_run_id": "Use --report_to wandb, and WANDB_RUN_ID in the environment",
    "wandb_watch": "Use --report_to wandb",
    "wandb_log_model": "Use --report_to wandb",
    "mlflow_tracking_uri": "Use --report_to visualdl, wandb or tensorboard",
    "plugins": "Plugins are not loaded. Remove it",
    "rl": _RLHF,
    # --- PaddleFormers
    "train_dataset_path": _DATA,
    "eval_dataset_path": _EVAL,
    "train_dataset_type": _ROWS,
    "eval_dataset_type": _ROWS,
    "train_dataset_prob": "Weights in --dataset_name_or_path mix files: '0.3 a.jsonl 0.7 b.jsonl'",
    "fine_tuning": "For full, set nothing; for lora, --lora",
    "max_seq_len": _LENGTH,
    "compute_type": "Use --bf16 or --fp16",
    # --- Megatron-LM
    "tensor_model_parallel_size": "Use --tensor_parallel_degree",
    "pipeline_model_parallel_size": "Use --pipeline_parallel_degree",
    "num_layers_per_virtual_pipeline_stage": "Use --virtual_pp_degree",
    "virtual_pipeline_model_parallel_size": "Use --virtual_pp_degree",
    "context_parallel_size": f"{_NO}. Use --tensor_parallel_degree with --sequence_parallel",
    "sequence_parallel_size": f"{_NO}. Use --tensor_parallel_degree with --sequence_parallel",
    "expert_model_parallel_size": "Mixtures of experts are not supported",
    "use_distributed_optimizer": "Use --sharding stage1",
    "overlap_grad_reduce": "Use --sharding_parallel_config",
    "global_batch_size": _STEP,
    "rampup_batch_size": f"{_NO}. {_STEP}",
    "train_samples": "Use --max_steps",
    "eval_interval": "Use --eval_steps",
    "save_interval": "Use --save_steps",
    "log_interval": "Use --logging_steps",
    "lr_decay_iters": "Use --decay_steps",
    "lr_decay_style": "Use --lr_scheduler_type",
    "lr_warmup_iters": "Use --warmup_steps",
    "lr_warmup_fraction": "Use --warmup_ratio",
    "min_lr": "Use --min_learning_rate",
    "clip_grad": "Use --max_grad_norm",
    "data_path": "Use --input_dir for pretraining, --dataset_name_or_path for fine-tuning",
    "train_data_path": "Use --input_dir for pretraining, --dataset_name_or_path for fine-tuning",
    "data_cache_path": "Use --data_cache",
    "tokenizer_model": "Use --tokenizer_name_or_path",
    "vocab_file": "Use --tokenizer_name_or_path",
    "merge_file": "Use --tokenizer_name_or_path",
    "save": "Use --output_dir",
    "load": "Use --resume_from_checkpoint, or --model_name_or_path with --continue_training 1",
    "recompute_activations": "Use --recompute",
    "recompute_method": "Use --recompute_granularity",
    "recompute_num_layers": "Use --no_recompute_layers",
    "attention_dropout": "Use --attention_probs_dropout_prob",
    "hidden_dropout": "Use --hidden_dropout_prob",
    "num_layers": f"{_MEGATRON_MODEL}, or use --num_hidden_layers",
    **dict.fromkeys(
        ("hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "max_position_embeddings", "normalization",
         "swiglu", "position_embedding_type", "rotary_base", "vocab_size", "untie_embeddings_and_output_weights"),
        _MEGATRON_MODEL,
    ),
    # --- the config file itself
    "config": "The config file is the first argument: SCRIPT CONFIG.json --key value",
    "config_file": "The config file is the first argument: SCRIPT CONFIG.json --key value",
    "defaults": "A config is one flat JSON object, without other files",
}  # fmt: skip

# Trainer -> keys that are typical of its configs; two of them identify it.
TYPICAL_KEYS: dict[str, frozenset[str]] = {
    "LLaMA-Factory": frozenset(
        {"stage", "finetuning_type", "template", "dataset", "dataset_dir", "cutoff_len", "lora_target", "overwrite_cache",
         "preprocessing_num_workers", "plot_loss", "val_size", "max_samples", "adapter_name_or_path"}
    ),
    "ms-swift": frozenset(
        {"train_type", "tuner_type", "sft_type", "model", "model_id_or_path", "dataset", "torch_dtype", "split_dataset_ratio",
         "rlhf_type", "attn_impl", "loss_scale", "tuner_backend", "model_author"}
    ),
    "axolotl": frozenset(
        {"base_model", "datasets", "sequence_len", "sample_packing", "val_set_size", "num_epochs", "pad_to_sequence_len",
         "dataset_prepared_path", "lora_target_linear", "train_on_inputs", "evals_per_epoch", "saves_per_epoch", "micro_batch_size"}
    ),
    "DeepSpeed": frozenset(
        {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping", "steps_per_print",
         "zero_allow_untested_optimizer", "wall_clock_breakdown", "activation_checkpointing"}
    ),
    "accelerate": frozenset(
        {"compute_environment", "distributed_type", "mixed_precision", "num_processes", "num_machines", "machine_rank",
         "deepspeed_config", "fsdp_config", "main_training_function", "rdzv_backend", "same_network"}
    ),
    "Megatron-LM": frozenset(
        {"tensor_model_parallel_size", "pipeline_model_parallel_size", "global_batch_size", "train_iters", "seq_length",
         "lr_decay_iters", "lr_warmup_iters", "lr_warmup_fraction", "use_distributed_optimizer", "min_lr", "clip_grad",
         "micro_batch_size", "eval_interval", "save_interval", "data_path", "tokenizer_model"}
    ),
    "PaddleFormers": frozenset(
        {"train_dataset_path", "train_dataset_type", "eval_dataset_path", "fine_tuning", "max_seq_len", "compute_type"}
    ),
    "TRL": frozenset(
        {"dataset_text_field", "assistant_only_loss", "completion_only_loss", "use_peft", "dataset_num_proc", "packing_strategy",
         "attn_implementation", "dataset_train_split"}
    ),
    "transformers": frozenset(
        {"eval_strategy", "gradient_checkpointing", "label_smoothing_factor", "lr_scheduler_kwargs", "torch_compile",
         "push_to_hub", "hub_model_id", "log_level", "group_by_length", "save_safetensors", "dataloader_pin_memory"}
    ),
}  # fmt: skip

_FOLDER = "the folder of a checkpoint"
_NEWEST = "by default the run resumes from the newest complete checkpoint in output_dir"
# Values of other trainers for fields that have the same name.
VALUES: dict[str, dict[str, str]] = {
    "optim": {name: "adamw" for name in ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adam", "adamw_apex_fused")},
    "adapter": {name: "`lora`: true" for name in ("lora", "qlora", "dora")},
    "lr_scheduler_type": {"cosine_with_min_lr": "cosine, which ends at --min_learning_rate", "WarmupDecayLR": "linear"},
    "evaluation_strategy": {"steps_per_epoch": "epoch"},
    "resume_from_checkpoint": {
        **dict.fromkeys(("true", "latest", "last", "auto", "1", "yes"), f"{_FOLDER}, or remove it: {_NEWEST}"),
        **dict.fromkeys(("false", "0", "no"), "--overwrite_output_dir to start from the beginning, or remove it"),
    },
}
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, "", "none", "None", "null", "no", "false", "False", [], {})
# Keys whose value false requests something that this program does not do.
_FALSE_IS_A_REQUEST = (
    "dataset_shuffle",
    "train_dataloader_shuffle",
    "enable_thinking",
    "assistant_only_loss",
    "completion_only_loss",
)


def counterpart(name: str, raw: Any) -> str | None:
    """Return what to use instead of a key of another trainer; "" if its value requests nothing, None if the key is unknown."""
    name = name.replace("-", "_")
    found = COUNTERPARTS.get(name)
    if found is None:
        return None
    neutral = any(raw is value or (type(raw) is type(value) and raw == value) for value in _NEUTRAL)
    if neutral and (raw is None or name not in _FALSE_IS_A_REQUEST):
        return ""
    return _zero_stage(raw) or found if found is _STAGES else found


def identify_trainer(names: set[str]) -> tuple[str, list[str]] | None:
    """Return the trainer that a config is written for and the keys that identify it; None with fewer than two such keys."""
    plain = {name.replace("-", "_") for name in names}
    trainer, keys = max(TYPICAL_KEYS.items(), key=lambda entry: len(entry[1] & plain))
    return (trainer, sorted(keys & plain)) if len(keys & plain) > 1 else None


def _zero_stage(raw: Any) -> str | None:
    """Return the counterpart of a DeepSpeed setting that gives the stage: a number, an object, or a file name such as ds_z3.json."""
    offload = False
    if isinstance(raw, int):
        stage: Any = raw
    elif isinstance(raw, dict):
        zero = raw.get("zero_optimization", raw)
        stage = zero.get("stage", zero.get("zero_stage")) if isinstance(zero, dict) else None
        offload = isinstance(zero, dict) and any(
            "offload" in str(key) and zero[key] not in (None, "none") for key in zero
        )
    else:
        match = re.search(r"z(?:ero)?[-_]?(?:stage)?[-_]?([0-3])(?!\d)", str(raw).rsplit("/", 1)[-1].lower())
        stage, offload = (int(match[1]), "offload" in str(raw).lower()) if match else (None, False)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        return None
    if stage == 0:
        return "ZeRO stage 0 shards nothing. Remove it"
    words = f"stage{stage}{' offload' if offload else ''}"
    return f"ZeRO stage {stage} is --sharding {words!r}" if offload else f"ZeRO stage {stage} is --sharding {words}"
