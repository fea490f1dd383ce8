"""Short fine-tuning runs for tests: instruction data, a tokenizer, tiny models, and the job that the scripts run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from paddle_llm.data.tokenizer import train_tokenizer
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.models.tiny import write_llama

VOCABULARY = 312
_NAMES = (
    "Ada",
    "Bela",
    "Cleo",
    "Dora",
    "Emil",
    "Finn",
    "Gwen",
    "Hugo",
    "Iris",
    "Jane",
    "Karl",
    "Lena",
    "Mona",
    "Nils",
    "Olga",
    "Paul",
)


def instructions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return questions and answers of unequal lengths."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        name, apples, more = draw.choice(_NAMES), draw.randint(1, 9), draw.randint(1, 9)
        story = f"{name} has {apples} apples and gets {more} more. " * draw.randint(1, 3)
        rows.append({"src": story + "How many?", "tgt": " ".join([str(apples + more), "apples"] * draw.randint(1, 4))})
    return rows


def make_instructions(folder: Path, train: int = 48, dev: int = 10) -> Path:
    """Write `folder`/{data/train.json, data/dev.json, llama with a tokenizer}; return `folder`."""
    (folder / "data").mkdir(parents=True)
    for split, count, seed in (("train", train, 0), ("dev", dev, 1)):
        lines = [json.dumps(row) + "\n" for row in instructions(count, seed)]
        (folder / "data" / f"{split}.json").write_text("".join(lines))
    texts = [f"{row['src']}\n{row['tgt']}" for row in instructions(200, 2)]
    train_tokenizer(texts, str(folder / "llama"), VOCABULARY)
    write_llama(folder / "llama", vocab_size=VOCABULARY, num_key_value_heads=2)
    return folder


def flags_of(folder: Path, output: Path, **changes: Any) -> list[str]:
    """Return the flags of a short fine-tuning; a value of None omits its flag."""
    settings: dict[str, Any] = {
        "model_name_or_path": folder / "llama",
        "dataset_name_or_path": folder / "data",
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "device": "cpu",
        "continue_training": False,
        "max_length": 96,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "logging_steps": 2,
        "evaluation_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
    }
    given = {name: value for name, value in (settings | changes).items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def job(flags: list[str], ranks: int, until: int | None = None) -> dict[str, Any]:
    """Run one rank of a fine-tuning like `finetune_generation.py`, in a separate process.

    Args:
        flags: Flags of the job.
        ranks: Number of ranks.
        until: Step after which the run stops, as if the job had been cancelled.
    """
    import paddle

    from paddle_llm.config.reader import resolve
    from paddle_llm.training import run as runner

    resolved = resolve(flags, world_size=ranks, entry="finetune")
    if until is not None:
        from paddlenlp.trainer import TrainerCallback

        from paddle_llm.training import finetune

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step >= until

        make = finetune.make_trainer

        def make_and_stop(*args, **kwargs):
            trainer = make(*args, **kwargs)
            trainer.add_callback(Stop())
            return trainer

        finetune.make_trainer = make_and_stop
    trainer = runner.run(resolved, "finetune")
    trained = {name: value.numpy() for name, value in trainer.model.state_dict().items() if not value.stop_gradient}
    return {"trained": trained, "steps": trainer.state.global_step, "device": paddle.get_device()}


def finetune(folder: Path, output: Path, ranks: int = 1, until: int | None = None, **changes: Any) -> list[dict]:
    """Run a job and return what each rank trained."""
    return run_ranks(job, ranks, flags_of(folder, output, **changes), ranks, until, timeout=180, quiet=True)
