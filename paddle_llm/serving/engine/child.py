"""The process of the engine: `python -m paddle_llm.serving.engine.child FD`.

It is a separate process because Paddle holds Python's global lock while a program runs, and the server must answer in the
meantime. It ends when the server does, because its connection is then closed.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import hide_torch_from_transformers
from paddle_llm.generation.static.program import StaticProgram, is_static, read_description
from paddle_llm.serving.engine.budget import bytes_per_token, longest_text, tokens_in_budget
from paddle_llm.serving.engine.messages import Cancel, Failed, Load, Ready, Step, Stop
from paddle_llm.serving.engine.texts import Finished

if TYPE_CHECKING:
    from paddle_llm.serving.engine.engine import Engine


def run(connection: Connection) -> None:
    """Load a model and generate texts until the server ends."""
    try:
        load = connection.recv()
        try:
            engine, ready = _load(load)
        except UserError as error:
            connection.send(Failed(str(error)))
            return
        connection.send(ready)
        _generate(engine, connection)
    except (EOFError, OSError):  # the server has ended
        return


def _load(load: Load) -> tuple[Engine, Ready]:
    options = load.options
    # Threads that spin for a millisecond before they sleep save a fifth of a short step (`generation/static`).
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    program_folder = options.folder.expanduser()
    if not is_static(program_folder):
        program_folder = _write_program(load)
    description = read_description(program_folder)
    length = longest_text(description, options.max_length)
    program = StaticProgram(program_folder, options.cpu_threads)
    tokens = tokens_in_budget(description, length, options.max_batch_size, options.kv_cache_gb)
    from paddle_llm.serving.engine.engine import Engine  # imports Paddle

    engine = Engine(program, tokens, max_texts=options.max_batch_size, prompt_chunk=options.prefill_chunk)
    threads = int(os.environ["OMP_NUM_THREADS"])
    return engine, Ready(program_folder, length, tokens, tokens * bytes_per_token(description), threads)


def _write_program(load: Load) -> Path:
    """Write the model as a static program into the work folder, and return the folder of the program."""
    from paddle_llm.parallel.process.start import start_process

    options = load.options
    start_process("cpu", cpu_threads=options.cpu_threads)
    from paddle_llm.export.api import export

    out = load.work_folder / "program"
    export(
        options.folder,
        "static",
        out,
        adapter=options.adapter,
        tokenizer=options.tokenizer,
        verify=False,
        allow_pickle=options.allow_pickle,
    )
    return out


def _generate(engine: Engine, connection: Connection) -> None:
    """Alternate between messages of the server and steps."""
    while True:
        while connection.poll(None if engine.is_idle else 0):
            message = connection.recv()
            if isinstance(message, Stop):
                return
            if isinstance(message, Cancel):
                engine.cancel(message.key)
                continue
            try:
                engine.add(message)
            except ValueError as error:
                connection.send(
                    Step((Finished(message.key, "error", f"The text was refused: {error}."),), engine.state)
                )
        events = engine.step()
        if events:
            connection.send(Step(tuple(events), engine.state))


def main() -> None:
    """Run with the connection whose file descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the server drains first
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a process group, for the same reason
    hide_torch_from_transformers()
    run(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
