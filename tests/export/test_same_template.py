"""The comparison of chat templates: equal, missing, changed, or with other special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.tokenizer import train_tokenizer
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.targets.serving_files import write_chat_template
from paddle_llm.export.verification.chat_template import template_differences

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    import pydoc_data.topics

    folder = tmp_path_factory.mktemp("bpe")
    train_tokenizer(pydoc_data.topics.topics.values(), str(folder), 700, model_type="bpe")
    return folder


def changed(folder: Path, **values: object) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("name", ["own", "chatglm2"])
def test_a_changed_template_is_detected(tokenizer, tmp_path, name) -> None:
    shutil.copytree(tokenizer, tmp_path / "source")
    if name == "own":
        (tmp_path / "source/chat_template.jinja").write_text(TEMPLATE)
    trained = choose_template(None if name == "own" else name, open_codec(str(tokenizer)), str(tmp_path / "source"))
    trained.as_trained().write(tmp_path / "source")
    source = SimpleNamespace(
        tokenizer=tmp_path / "source", template=None, template_folder=tmp_path / "source", folder=tmp_path / "source"
    )
    out = tmp_path / "export"
    shutil.copytree(tokenizer, out)
    write_chat_template(source, out)
    count, differences = template_differences(source, out)
    assert count == 5 and not differences
    changed(out, eos_token="<unk>")
    assert len(template_differences(source, out)[1]) >= 2
    changed(out, eos_token="</s>", chat_template=TEMPLATE.replace("[", "("))
    assert "is not the one that the model was trained with" in template_differences(source, out)[1][0]
    (out / "training_chat_template.json").unlink()
    assert len(template_differences(source, out)[1]) == 5
    changed(out, chat_template=None)
    assert template_differences(source, out) == (0, ["only the source has a chat template"])


def test_without_templates_there_is_no_finding(tokenizer, tmp_path) -> None:
    source = SimpleNamespace(tokenizer=tokenizer, template=None, template_folder=None, folder=tokenizer)
    assert template_differences(source, tokenizer) is None
