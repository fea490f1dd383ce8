"""The commands of docs/how-to/serve.md run as typed, except for the folder and the port."""

from __future__ import annotations

import json
import shlex
import subprocess

from tests.helpers.doc_pages import commands
from tests.serving.running_server import running

ADDRESS = "http://127.0.0.1:8000"


def test_the_commands_of_the_page(llama):
    _, serve, *asked = commands("how-to/serve")
    program, command, _, *options = shlex.split(serve)
    assert (program, command, options[-2:]) == ("paddle-llm", "serve", ["--port", "8000"])
    with running(llama, *options[:-2]) as server:
        answers = []
        for line in asked:
            assert line.startswith("curl -s") and ADDRESS in line
            words = shlex.split(line.replace(ADDRESS, server.url))
            answers.append(subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout)
    models, completion, stream = answers
    assert json.loads(models)["data"][0]["id"] == "mine"
    assert json.loads(completion)["usage"]["completion_tokens"] <= 20 and json.loads(completion)["choices"][0]["text"]
    assert stream.startswith('data: {"id": "chatcmpl-') and stream.endswith("data: [DONE]\n\n")
