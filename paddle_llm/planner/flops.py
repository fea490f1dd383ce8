"""Parameters of a model, its FLOPs per token, and the share of a device's peak that it reaches (MFU).

MFU = FLOPs per token x tokens per second per device / peak FLOP/s of the device (PaLM, arXiv:2204.02311, appendix B).
Only FLOPs of the model count: not those of a forward pass that recompute repeats, of vocabulary padding or of
collectives.
"""

from __future__ import annotations

from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.parameters import Parameters, count


def count_parameters(facts: ModelFacts) -> Parameters:
    """Return the number of parameters of a model, by kind.

    Raises:
        UserError: If the family is not supported.
    """
    family = FAMILIES.get(facts.model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UserError(f"model_type = {facts.model_type!r} is not supported. Use one of {known}.")
    return count(family.weight_shapes(facts), facts.num_hidden_layers)


def parameter_count(facts: ModelFacts) -> int:
    """Return the number of elements of all weights; a tied head counts once, padding of the vocabulary does not.

    Raises:
        UserError: If the family is not supported.
    """
    return count_parameters(facts).total


def flops_per_token(facts: ModelFacts, seq_length: int) -> float:
    """Return the model FLOPs of the forward and backward pass of one token.

    The formula is `6 * (N - N_lookup) + 12 * L * h * s`. A multiply-add per weight is 2 FLOPs forward and 4 backward;
    scores and their weighted sum are 2 * 2 * h * s forward and twice that backward. Attention counts in full although
    the mask is causal, as in PaLM, Megatron-LM and nanoGPT. `N_lookup` is the token embedding if the head is a separate
    matrix, because a lookup is not a matrix product; a tied matrix counts once, as the head. Fewer key-value heads
    (GQA, MQA) lower N but not the cost of attention. `h` is heads x head width.

    Args:
        facts: Shape of the model.
        seq_length: Tokens per sample of this run (not the model's `max_position_embeddings`).

    Raises:
        UserError: If the family is not supported.
    """
    parameters = count_parameters(facts)
    attention_width = facts.num_attention_heads * facts.head_dim
    matmul = 6.0 * (parameters.total - parameters.lookups)
    return matmul + 12.0 * facts.num_hidden_layers * attention_width * seq_length


# (words in the name of the device, {dtype: TFLOP/s}). The first row whose words are all in the name is used, so specific
# rows come first. The numbers are dense ones of NVIDIA's datasheets ("with sparsity" halved), with fp32 accumulation for
# GeForce cards. float32 is TF32 on cards that have it, because cuBLAS uses it by default under Paddle; the number
# without TF32 would give too high an MFU.
_PEAK_TFLOPS: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (("b200",), {"bfloat16": 2250, "float16": 2250, "float32": 1125}),
    (("h200", "nvl"), {"bfloat16": 835, "float16": 835, "float32": 417.5}),
    (("h200",), {"bfloat16": 989.5, "float16": 989.5, "float32": 494.5}),
    (("h100", "nvl"), {"bfloat16": 835, "float16": 835, "float32": 417.5}),
    (("h100", "pcie"), {"bfloat16": 756, "float16": 756, "float32": 378}),
    (("h800", "pcie"), {"bfloat16": 756, "float16": 756, "float32": 378}),
    (("h100",), {"bfloat16": 989.5, "float16": 989.5, "float32": 494.5}),
    (("h800",), {"bfloat16": 989.5, "float16": 989.5, "float32": 494.5}),
    (("h20",), {"bfloat16": 148, "float16": 148, "float32": 74}),
    (("a100",), {"bfloat16": 312, "float16": 312, "float32": 156}),
    (("a800",), {"bfloat16": 312, "float16": 312, "float32": 156}),
    (("a40",), {"bfloat16": 149.7, "float16": 149.7, "float32": 74.8}),
    (("a30",), {"bfloat16": 165, "float16": 165, "float32": 82}),
    (("a10",), {"bfloat16": 125, "float16": 125, "float32": 62.5}),
    (("l40s",), {"bfloat16": 362.05, "float16": 362.05, "float32": 183}),
    (("l40",), {"bfloat16": 181.05, "float16": 181.05, "float32": 90.5}),
    (("l20",), {"bfloat16": 119.5, "float16": 119.5, "float32": 59.8}),
    (("rtx", "4090"), {"bfloat16": 165.2, "float16": 165.2, "float32": 82.6}),
    (("rtx", "3090"), {"bfloat16": 71, "float16": 71, "float32": 35.6}),
    (("v100", "pcie"), {"float16": 112, "float32": 14}),
    (("v100",), {"float16": 125, "float32": 15.7}),
    (("t4",), {"float16": 65, "float32": 8.1}),
)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "tf32": "float32"}
# A device whose name also has one of these words is another card, or a part of a card.
_OTHER_CARD_WORDS = {"laptop", "mobile", "max", "d", "ti", "mig"}


def _words(device_name: str) -> set[str]:
    return set(device_name.lower().replace("-", " ").replace("_", " ").split())


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Return the dense peak FLOP/s of one device; None if it is not known (a CPU, an unlisted card, a missing dtype).

    Args:
        device_name: Name from the driver, such as "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3" or "NVIDIA H100
            PCIe". "H100" and "H800" alone mean SXM.
        dtype: Type of the matrix products: "bfloat16", "float16" or "float32" (TF32 if the card has it), or bf16, fp16,
            fp32.
    """
    words = _words(device_name)
    if words & _OTHER_CARD_WORDS:
        return None
    for wanted, tflops in _PEAK_TFLOPS:
        if words.issuperset(wanted):
            peak = tflops.get(_DTYPES.get(dtype, dtype))
            return None if peak is None else peak * 1e12
    return None


def mfu(flops_per_token: float | None, tokens_per_second_per_device: float, peak_flops: float | None) -> float | None:
    """Model FLOPs utilization: the FLOP/s that the model needs as a share of the peak FLOP/s of the device.

    Args:
        flops_per_token: Model FLOPs of forward and backward; see the function of this name.
        tokens_per_second_per_device: Speed of the whole job, divided by all its devices (tensor and pipeline ranks
            too).
        peak_flops: Peak of one device; see the function of this name.

    Returns:
        Number from 0 to 1; None if an argument is None.
    """
    if flops_per_token is None or peak_flops is None:
        return None
    return flops_per_token * tokens_per_second_per_device / peak_flops
