"""A CPU engine for fastdeploy-llm 0.0.8 and a front end: they replace the package's own `engine.py`, which needs a GPU.

`python fastdeploy_llm_engine.py serve FOLDER QUESTIONS.json` starts the package's `ServingModel` (its tokenizer, queue, batching
and streaming), adds each text as a separate task, and prints the streamed tokens, one JSON object per task and line. The package
starts its engine with `fastdeploy_llm.model.launch`, which is replaced and starts this file as
`python fastdeploy_llm_engine.py engine FOLDER PID`.

The engine uses the package's protocol: pickled inputs and flags in shared memory, and the tokens of each step in a file of the
working folder. The names of the shared memory are global, so only one instance can run at a time (environments.alone).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import numpy as np

NEW_TOKENS = 24
_NOTHING = -1  # in the file of a step: no token for this slot
_LAST_STEP_SECONDS = 0.2
_LONGEST_SECONDS = 200


# ---- the front end of the package, except for `launch` ---------------------------------------------------------------


def serve(folder: str, questions: str) -> None:
    import fastdeploy_llm.model
    from fastdeploy_llm import Config, ServingModel

    _remove_leftovers()
    fastdeploy_llm.model.launch = lambda device_ids, **options: subprocess.Popen(
        [sys.executable, __file__, "engine", folder, str(os.getpid())], start_new_session=True
    )
    config = Config(folder)
    config.max_batch_size, config.max_seq_len, config.max_dec_len = 3, 256, NEW_TOKENS
    model = ServingModel(config)
    model.start()
    ended = threading.Event()
    try:
        tasks = [_task(number, text) for number, text in enumerate(json.loads(Path(questions).read_text()))]
        streamed = _streamed(tasks, ended)
        for task in tasks:
            model.add_request(task)
        until = time.monotonic() + _LONGEST_SECONDS
        while not ended.wait(0.2):
            if not model.runner_thread.is_alive() or time.monotonic() > until:
                sys.exit(f"fastdeploy-llm has not answered: {streamed}")
        while model.model._is_engine_busy():  # it is notified after the last token
            time.sleep(0.05)
        for number in range(len(tasks)):
            print(json.dumps({"task": number, **streamed[number]}), flush=True)
    finally:
        model.force_stop()


def _remove_leftovers() -> None:
    """Remove the shared memory of an instance that was killed; otherwise the package cannot start."""
    for name in ("shm_infer_output_data", "shm_infer_input_data"):
        with contextlib.suppress(FileNotFoundError):
            shared_memory.SharedMemory(name=name).unlink()


def _task(number: int, text: str) -> Any:
    from fastdeploy_llm import Task

    task = Task(number)
    task.from_dict(
        {
            "text": text,
            "req_id": number,
            "max_dec_len": NEW_TOKENS - number % 3,
            "min_dec_len": 2,
            "topp": 0.0,
            "temperature": 1.0,
            "penalty_score": 1.0,
            "frequency_score": 0.0,
            "presence_score": 0.0,
            "eos_token_id": 2,
        }
    )
    task.check(NEW_TOKENS)
    return task


def _streamed(tasks: list[Any], ended: threading.Event) -> dict[int, dict[str, Any]]:
    """Return the tokens and the text that each task receives; they are added as they arrive."""
    received: dict[int, dict[str, Any]] = {task.task_id: {"tokens": [], "text": "", "ended": False} for task in tasks}

    def receive(
        call_back_task: Any, token_tuple: tuple[int, str], index: int, is_last_token: bool, sender: Any
    ) -> None:
        one = received[call_back_task.task_id]
        assert index == len(one["tokens"]) and not one["ended"]
        one["tokens"].append(token_tuple[0])
        one["text"] += token_tuple[1]
        one["ended"] = is_last_token
        if all(other["ended"] for other in received.values()):
            ended.set()

    for task in tasks:
        task.call_back_func = receive
    return received


# ---- the engine ------------------------------------------------------------------------------------------------------


class Engine:
    """Continues up to `max_batch_size` texts greedily with a static export; each keeps its slot until it is replaced."""

    def __init__(self, folder: str):
        from paddle_llm.generation.static_network import StaticModel

        self._model = StaticModel(folder)
        self._texts: dict[int, list[int]] = {}

    def predict(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Generate until `stop_nums` slots have stopped, write the tokens of each step to a file, and return the state of all slots."""
        from paddle_llm.models.prompt import Prompt

        stopped = inputs["stop_flags"].reshape(-1).copy()
        counts, most = inputs["step_idx"].reshape(-1).copy(), inputs["max_length"].reshape(-1)
        last = inputs["tgt_ids"].reshape(-1).copy()
        end = int(inputs["eos_token_id"].reshape(-1)[0])
        for slot in np.flatnonzero(inputs["dyinput_flags"]):
            self._texts[slot] = inputs["input_ids"][slot, : int(inputs["seq_len_encoder"][slot, 0])].tolist()
        # Unfinished texts are read again with their generated tokens, as a prompt.
        going = [int(slot) for slot in np.flatnonzero(~stopped)]
        network = self._model.open([Prompt(self._texts[slot]) for slot in going], int(most.max()) + 1)
        logits_BV, step = network.read_prompts(), 0
        while True:
            step += 1
            chosen_B = logits_BV.numpy().argmax(axis=-1)
            tokens_B = np.full(len(stopped), _NOTHING, np.int64)
            for row, slot in enumerate(going):
                if stopped[slot]:
                    continue
                token = end if counts[slot] >= most[slot] else int(chosen_B[row])
                tokens_B[slot] = last[slot] = token
                counts[slot] += 1
                stopped[slot] = token == end
                if token != end:
                    self._texts[slot].append(token)
            _write_step(step, tokens_B)
            if stopped.sum() >= int(inputs["stop_nums"][0]):
                break
            logits_BV = network.read(chosen_B)
        lengths = np.array([len(self._texts.get(slot, ())) for slot in range(len(stopped))], np.int64)
        # One type for all: the pickled state then fits the buffer.
        state = {"finished_ids": last, "step_idx": counts, "stop_flags": stopped.astype(np.int64)}
        state |= {"seq_lens_decoder": lengths, "tgt_pos": lengths - 1}
        return {name: values.reshape(-1, 1) for name, values in state.items()}


def _write_step(step: int, tokens: np.ndarray) -> None:
    """Write the file of the package's GPU operator: a mark that it is complete, the mark of int64, the tokens."""
    name = f"real_time_save.temp_ids_rank_0_step_{step}"
    Path(f"{name}.part").write_bytes(b"1" + b"1" + struct.pack(f"{len(tokens)}l", *tokens.tolist()))
    os.replace(f"{name}.part", name)


def run_engine(folder: str, front_end: int) -> None:
    """Answer the front end until it has ended."""
    engine = Engine(folder)
    begin, finish, ready = (_flag(name) for name in ("pd_infer_flag_begin", "pd_infer_flag_end", "flag_infer_ready"))
    output = _shared("shm_infer_output_data")
    ready[0] = 1
    while _runs(front_end):
        if begin[0] != 1:
            time.sleep(0.001)
            continue
        given = _shared("shm_infer_input_data")
        inputs = pickle.loads(bytes(given.buf))
        given.close()
        state = pickle.dumps(engine.predict(inputs))
        # The front end looks for a file before it looks for the flag: a flag right after the last file would hide the file.
        time.sleep(_LAST_STEP_SECONDS)
        output.buf[: len(state) + 4] = len(state).to_bytes(4, "big") + state
        finish[0], begin[0] = 1, 0


def _shared(name: str) -> shared_memory.SharedMemory:
    memory = shared_memory.SharedMemory(name=name)
    # The front end removes it; Python 3.11 would also remove it when this process ends.
    resource_tracker.unregister(memory._name, "shared_memory")
    return memory


_KEPT = []


def _flag(name: str) -> np.ndarray:
    _KEPT.append(_shared(f"shm_{name}"))
    return np.ndarray([1], np.int32, buffer=_KEPT[-1].buf)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3])
    else:
        run_engine(sys.argv[2], int(sys.argv[3]))
