"""Answers that are generated during a training with flash attention and fused rotary embeddings."""

from __future__ import annotations

import json
from pathlib import Path

from paddle_llm.rehearse.ranks import run_ranks
from tests.gpu.trainings import ENVIRONMENT, TIMEOUT
from tests.helpers.finetune_jobs import flags_of, job, make_instructions
from tests.helpers.pretrain_jobs import rows

# So small that 16-bit weights do not change: the answers do not depend on how the kernels of training round.
LEARNING_RATE = 1e-12
SETTINGS = {
    "max_steps": 2,
    "eval_steps": 1,
    "save_strategy": "no",
    "learning_rate": LEARNING_RATE,
    "eval_with_do_generation": True,
    "generation_max_new_tokens": 4,
    "generation_batch_size": 4,
    "bf16": True,
    "fp16_opt_level": "O2",
    "amp_master_grad": True,
}


def answers(device: str, folder: Path, name: str, **settings) -> list[str]:
    """Run the job of finetune_generation.py, and return the answers of both evaluations."""
    output = folder / name
    flags = flags_of(folder / "job", output, device=device, **SETTINGS, **settings)
    (done,) = run_ranks(job, 1, flags, 1, device=device, env=ENVIRONMENT, timeout=TIMEOUT, quiet=True)
    assert done["device"].partition(":")[0] == device
    assert [row["step"] for row in rows(output) if "eval_bleu" in row] == [1, 2]
    texts = [(output / f"generated-{step}.jsonl").read_text().splitlines() for step in (1, 2)]
    return [json.loads(line)["generated"] for part in texts for line in part]


def test_fused_kernels_generate_the_answers_of_plain_ones(tmp_path: Path, device: str) -> None:
    make_instructions(tmp_path / "job", train=8, dev=3)  # prompts of unequal lengths, padded on the left
    fused = answers(device, tmp_path, "fused", use_flash_attention=True, use_fused_rope=True)
    assert fused == answers(device, tmp_path, "plain") and len(fused) == 6 and any(fused)
