"""Seconds per training step on a CPU, our entry point beside its peers, interleaved in one run.

    python benchmarks/step_speed.py [--rounds 3] [--steps 6] > benchmarks/results/...md

Peers: PaddleNLP's Trainer as a user starts it, the same with OMP_NUM_THREADS=2, the same in the environment that our
entry point sets, and Hugging Face's Trainer on torch (where the extra `hf` is installed). One process, LLaMA of hidden
512, 4 layers, sequence 512, batch 4, float32. A step is the median of the steps after the second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from machine import describe

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SEQUENCE, BATCH = 512, 4

_DATA = """
import numpy as np
class Data:
    samples_per_epoch = 1 << 20
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        t = np.random.RandomState(i).randint(0, 8000, 513).astype("int64")
        return {"input_ids": t[:-1], "labels": t[LABELS]}
"""

_CLOCK = """
import time, json
class Clock(Base):
    def __init__(self): self.times = []; self.last = None
    def on_step_end(self, args, state, control, **kw):
        now = time.perf_counter()
        if self.last is not None: self.times.append(now - self.last)
        self.last = now
"""

_PADDLENLP = (
    _DATA.replace("LABELS", "1:")
    + """
import sys, paddle
from paddlenlp.trainer import Trainer, TrainingArguments, TrainerCallback as Base
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM
from paddlenlp.utils.log import logger
logger.set_level("ERROR")
"""
    + _CLOCK
    + """
folder, steps = sys.argv[1], int(sys.argv[2])
paddle.set_device("cpu")
paddle.seed(0)
model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in json.load(open(folder + "/config.json")).items() if k != "model_type"}))
args = TrainingArguments(output_dir=folder + "/o", per_device_train_batch_size=4, max_steps=steps, logging_steps=1, save_steps=10**6,
                         learning_rate=3e-4, disable_tqdm=True, device="cpu", report_to=[], weight_decay=0.01)
clock = Clock()
Trainer(model=model, args=args, train_dataset=Data(4 * steps), callbacks=[clock]).train()
print("STEPS", json.dumps(clock.times))
"""
)

_HF = (
    _DATA.replace("LABELS", ":-1")
    + """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, TrainerCallback as Base
torch.set_num_threads(2)
"""
    + _CLOCK
    + """
folder, steps = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in json.load(open(folder + "/config.json")).items() if k != "model_type"}))
args = TrainingArguments(output_dir=folder + "/h", per_device_train_batch_size=4, max_steps=steps, logging_steps=1, save_steps=10**6,
                         learning_rate=3e-4, disable_tqdm=True, use_cpu=True, report_to=[], weight_decay=0.01)
clock = Clock()
Trainer(model=model, args=args, train_dataset=Data(4 * steps), callbacks=[clock]).train()
print("STEPS", json.dumps(clock.times))
"""
)

_OURS = (
    """
import sys
from paddle_llm.parallel.process.environment import prepare_host
prepare_host("cpu")
"""
    + _DATA.replace("LABELS", "1:")
    + """
from paddlenlp.trainer import TrainerCallback as Base
"""
    + _CLOCK
    + """
import paddle
from paddle_llm.parallel.process.start import start_process
from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
start_process("cpu", 1)
from paddle_llm.models.build import build_model
from paddle_llm.training.arguments import training_arguments
from paddle_llm.training.options import TrainerOptions
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer
folder, steps = sys.argv[1], int(sys.argv[2])
run = RunConfig(model_name_or_path=folder, output_dir=folder + "/p", do_train=True, device="cpu", max_steps=steps, logging_steps=1,
                save_strategy="no", per_device_train_batch_size=4, max_seq_length=512, learning_rate=3e-4)
clock = Clock()
trainer = PretrainTrainer(model=build_model(run, Layout(), dtype="float32"), args=training_arguments(run, Layout()), layout=Layout(),
                          options=TrainerOptions(), train_dataset=Data(4 * steps), callbacks=[clock])
OWN
trainer.train()
print("STEPS", json.dumps(clock.times))
"""
)

# Time inside our own callbacks and overridden methods, less what upstream's own work in them takes.
_OWN_TIME = """
own = {"seconds": 0.0}
def timed(holder, name):
    original = getattr(holder, name)
    def wrapper(*a, **k):
        began = time.perf_counter()
        try: return original(*a, **k)
        finally: own["seconds"] += time.perf_counter() - began
    setattr(holder, name, wrapper)
from paddle_llm.training import pretrain_trainer as ours, reports
timed(trainer.scalars, "read"); timed(trainer, "_check_loss_valid"); timed(trainer, "_maybe_log_save_evaluate")
for callback in trainer.callback_handler.callbacks:
    if type(callback).__module__ == reports.__name__:
        for event in ("on_load_data_end", "on_substep_end", "on_step_end"):
            timed(callback, event)
import atexit
atexit.register(lambda: print("OWN", own["seconds"] / max(1, len(clock.times) + 1)))
"""


def _run(code: str, folder: Path, steps: int, environment: dict[str, str]) -> tuple[list[float], float | None]:
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "MKL_NUM_THREADS")
    }
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder), str(steps)],
        env=inherited | environment,
        capture_output=True,
        text=True,
    )
    lines = {
        line.split(" ", 1)[0]: line.split(" ", 1)[1]
        for line in result.stdout.splitlines()
        if line.startswith(("STEPS ", "OWN "))
    }
    if "STEPS" not in lines:
        sys.exit(f"{result.stdout}\n{result.stderr}")
    return json.loads(lines["STEPS"])[1:], float(lines["OWN"]) if "OWN" in lines else None


def _same_environment() -> dict[str, str]:
    """What prepare_host sets, for the peer in the same environment."""
    code = "import os; from paddle_llm.parallel.process.environment import prepare_host; b = dict(os.environ); prepare_host('cpu'); import json; print(json.dumps({k: v for k, v in os.environ.items() if b.get(k) != v}))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    peers: dict[str, tuple[str, dict[str, str]]] = {
        "ours": (_OURS.replace("OWN\n", "\n"), {}),
        "ours, own time measured": (_OURS.replace("OWN\n", _OWN_TIME + "\n"), {}),
        "PaddleNLP Trainer, our environment": (_PADDLENLP, _same_environment()),
        "PaddleNLP Trainer, as a user starts it": (_PADDLENLP, {}),
        "PaddleNLP Trainer, OMP_NUM_THREADS=2": (_PADDLENLP, {"OMP_NUM_THREADS": "2"}),
    }
    try:
        import transformers  # noqa: F401

        peers["Hugging Face Trainer on torch, 2 threads"] = (_HF, {"OMP_NUM_THREADS": "2"})
    except ImportError:
        print("Hugging Face left out: pip install -e '.[hf]'", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in peers}
    own: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        for round_number in range(options.rounds):
            for name, (code, environment) in peers.items():
                found, own_seconds = _run(code, folder, options.steps, environment)
                times[name] += found
                own += [own_seconds] if own_seconds is not None else []
                print(
                    f"round {round_number + 1}: {name}: {statistics.median(found):.2f} s", file=sys.stderr, flush=True
                )
    _report(times, own)


def _report(times: dict[str, list[float]], own: list[float]) -> None:
    ours = statistics.median(times["ours"])
    print(f"# Seconds per step on a CPU, {date.today()}\n")
    print(f"{describe('paddlepaddle', 'paddlenlp', 'torch', 'transformers')}\n")
    print("LLaMA hidden 512, 4 layers, vocabulary 8000, sequence 512, batch 4, float32, one process.\n")
    print("| | s/step (median) | tokens/s | that / ours |\n|---|---|---|---|")
    for name, found in times.items():
        median = statistics.median(found)
        print(f"| {name} | {median:.3f} | {BATCH * SEQUENCE / median:,.0f} | {median / ours:.2f} |")
    share = statistics.median(own) / statistics.median(times["ours, own time measured"])
    print(
        f"\nTime inside our own callbacks and checks: {statistics.median(own) * 1000:.1f} ms per step, {share:.2%} of it."
    )


if __name__ == "__main__":
    main()
