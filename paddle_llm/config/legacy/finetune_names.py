"""Names that PaddleNLP's fine-tuning commands had since 2023 and that are no fields here: what they are called today, or why not.

A (April 2023) to D (3.0): the generations of `old_names.py`. run_pretrain.py has none of them.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.config.legacy.kinds import Refused, Renamed, Stale, is_neutral


def _if_on(raw: Any) -> Any:
    return None if is_neutral(raw, (False,)) else True


_OFF = (False,)
_DATA = Renamed("dataset_name_or_path")
_VERA = "VeRA learns nothing as PaddleNLP 3.0 builds it: its vectors start at zero and are frozen. Use --lora"
_LOKR = "PaddleNLP 3.0 cannot save LoKr without another setting, and cannot split it over ranks. Use --lora"
_REFT = "ReFT fails to train in PaddleNLP 3.0. Use --lora or --adapter"
_OF_REFT = "it belongs to ReFT, which is not offered"
_PISSA = "a PiSSA adapter of PaddleNLP 3.0 does not fit the model that it is loaded into again. Use --lora, or --rslora"
_MORA = "merging a MoRA adapter in PaddleNLP 3.0 changes what the model says. Use --lora, with a higher --lora_rank"
_QLORA = "weights in 4 or 8 bits need CUDA kernels that PaddleNLP 3.0 does not bring. Use --lora with --bf16"
_QUANT = "quantising a model is not part of fine-tuning"
_SMOOTH = "it belongs to quantisation, which is not part of fine-tuning"

FINETUNE_NAMES: dict[str, Renamed | Stale | Refused] = {
    # --- data, A and B
    "task_path": _DATA,
    "task_name_or_path": _DATA,
    "task_name": _DATA,
    "dataset_path": _DATA,
    "data_name": _DATA,
    "tgt_length": Renamed("max_length", plus="src_length"),
    "instruction_generation": Stale("instructions are what is read, whatever their format", _OFF),
    # --- data, C and D
    "intokens": Renamed("zero_padding"),
    "greedy_zero_padding": Renamed("zero_padding", convert=_if_on),
    "lazy": Stale("samples are encoded once, before training", (True, False)),
    "autoregressive": Refused("to learn questions as well use --loss_on all", _OFF),
    "use_pose_convert": Refused("positions are not stretched", _OFF),
    "flash_mask": Stale("packed rows are computed sample by sample anyway", (True, False)),
    # --- LoRA
    "r": Renamed("lora_rank"),
    "target_modules": Renamed("lora_target_modules"),
    "use_dora": Renamed("dora"),
    "use_rslora": Renamed("rslora"),
    "use_quick_lora": Stale("it computes the same in another order", (True, False)),
    "pissa": Refused(_PISSA, _OFF),
    "lora_use_mixer": Refused("MosLoRA is not offered. Use --lora", _OFF),
    "use_mora": Refused(_MORA, _OFF),
    "vera": Refused(_VERA, _OFF),
    "vera_rank": Stale("it belongs to VeRA, which is not offered", (8,)),
    "lokr": Refused(_LOKR, _OFF),
    "lokr_path": Refused(_LOKR),
    "lokr_dim": Stale("it belongs to LoKr, which is not offered", (8,)),
    "reft": Refused(_REFT, _OFF),
    "layers": Stale(_OF_REFT, ("all",)),
    "position": Stale(_OF_REFT, ("f7+l7",)),
    "intervention_type": Stale(_OF_REFT, ("LoreftIntervention",)),
    "rank": Refused(_OF_REFT + "; the rank of LoRA is --lora_rank", (8,)),
    "act_fn": Stale(_OF_REFT, ("linear",)),
    "add_bias": Stale(_OF_REFT, _OFF),
    "dropout": Refused(_OF_REFT + "; the dropout of LoRA is --lora_dropout", (0.0,)),
    "neftune": Refused("noise on embeddings is not offered", _OFF),
    "neftune_noise_alpha": Stale(
        "it belongs to NEFTune, which is not offered", (0.0,)
    ),  # transformers: 5 switches it on
    "use_ssa": Refused("shifted sparse attention is not offered", _OFF),
    "ssa_group_size_ratio": Stale("it belongs to shifted sparse attention, which is not offered", (0.25,)),
    # --- evaluation by generating
    "do_generation": Renamed("eval_with_do_generation"),
    "select_topk": Stale("--top_k alone says it", (True, False)),
    "generate_num": Refused("all of the dev set is generated: give a shorter dev.json", (0,)),
    "min_tgt_length": Refused("answers have no least length", (0,)),
    "length_penalty": Refused("beams are compared by their mean log-likelihood", (1.0,)),
    "no_repeat_ngram_size": Refused("nothing is forbidden to repeat", (0,)),
    # --- quantisation, B to D
    "weight_quantize_algo": Refused(_QLORA),
    "weight_blocksize": Stale(_SMOOTH, (64,)),
    "weight_double_quant": Stale(_SMOOTH, _OFF),
    "weight_double_quant_block_size": Stale(_SMOOTH, (256,)),
    "qat": Refused(_QUANT, _OFF),
    "qat_type": Stale(_SMOOTH, ("A8W8",)),
    "quant_type": Stale(_SMOOTH, ("A8W8",)),
    "do_qat": Refused(_QUANT, _OFF),
    "do_ptq": Refused(_QUANT, _OFF),
    "do_gptq": Refused(_QUANT, _OFF),
    "ptq_step": Stale(_SMOOTH, (32,)),
    "shift": Stale(_SMOOTH, _OFF),
    "shift_all_linears": Stale(_SMOOTH, _OFF),
    "shift_sampler": Stale(_SMOOTH, ("ema",)),
    "shift_step": Stale(_SMOOTH, (32,)),
    "smooth": Stale(_SMOOTH, _OFF),
    "smooth_all_linears": Stale(_SMOOTH, _OFF),
    "smooth_sampler": Stale(_SMOOTH, ("none",)),
    "smooth_step": Stale(_SMOOTH, (32,)),
    "smooth_piecewise_search": Stale(_SMOOTH, _OFF),
    "smooth_k_piece": Stale(_SMOOTH, (3,)),
    "smooth_search_piece": Stale(_SMOOTH, _OFF),
    "gptq_step": Stale(_SMOOTH, (8,)),
}
