"""Every folder that a fine-tuning writes contains its chat template, which is used afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from paddle_llm.config.local_files.chat_templates import read_record
from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import import_transformers
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.open import open_source
from paddle_llm.generation.folders import resolve_folders
from paddle_llm.generation.network import _training_template
from paddle_llm.generation.options import GenerateOptions
from tests.helpers.convert import from_peft, to_peft
from tests.helpers.finetune_jobs import finetune, make_instructions
from tests.helpers.models.networks import as_hugging_face, build, weights

OWN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "2 apples"}]
WRITTEN = "[user]How many?</s>[assistant]2 apples</s>"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = make_instructions(tmp_path_factory.mktemp("instructions"), train=8, dev=2)
    (folder / "llama/chat_template.jinja").write_text(OWN)
    return folder


def text_of(folder: Path, tokenizer: Path) -> str:
    codec = open_codec(str(tokenizer))
    chosen = choose_template("auto", codec, str(tokenizer), trained=str(folder))
    assert chosen.why == "as in the model's training"
    turns = tuple(Turn(message["role"], message["content"]) for message in TALK)
    return chosen.template.render(Conversation(turns)).text


def test_every_folder_contains_the_template_of_the_tokenizer(base, tmp_path) -> None:
    finetune(base, tmp_path, lora=True, lora_rank=2, merge_weights=True, model_format="hf", max_steps=3)
    for name in ("model", "adapter", "checkpoint-3"):
        assert text_of(tmp_path / name, base / "llama") == WRITTEN
    theirs = import_transformers().AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    assert theirs.apply_chat_template(TALK, tokenize=False) == WRITTEN
    assert open_source(tmp_path / "model").template_folder == tmp_path / "model"
    (tmp_path / "model/chat_template.jinja").write_text(OWN.replace("[", "("))
    with pytest.raises(UserError, match=r"is not the one .*Restore it, choose a template with --chat_template"):
        read_record(tmp_path / "model")


def test_a_tokenizer_beside_an_adapter_takes_precedence(base, tmp_path, capsys) -> None:
    model = tmp_path / "base"
    shutil.copytree(base / "llama", model)
    save_file(
        as_hugging_face(weights(build(model), "llama"), "llama"), model / "model.safetensors", metadata={"format": "pt"}
    )
    finetune(base, tmp_path / "out", model_name_or_path=model, lora=True, lora_rank=2, max_steps=1, save_steps=1)
    adapter, peft, back = tmp_path / "out/adapter", tmp_path / "peft", tmp_path / "back"
    to_peft(adapter, peft, base=model)
    for name in ("chat_template.jinja", "training_chat_template.json"):  # as an adapter of another trainer
        (peft / name).unlink()
    for name in ("tokenizer_config.json", "sentencepiece.bpe.model"):
        shutil.copyfile(model / name, peft / name)
    settings = json.loads((peft / "tokenizer_config.json").read_text())
    (peft / "tokenizer_config.json").write_text(
        json.dumps({**settings, "eos_token": "<pad>", "name_or_path": "/home/me"})
    )
    capsys.readouterr()
    source = open_source(model, adapter=peft)
    assert source.tokenizer == peft and source.template_folder == model  # the template is the base's
    assert f"tokenizer: read from the adapter folder {peft}" in capsys.readouterr().err
    folder, options = resolve_folders(model, GenerateOptions(adapter=peft, device="cpu"))
    assert folder == model and options.tokenizer == peft
    assert _training_template(model, peft) == (None, model)
    (peft / "events.log").write_text("x")
    from_peft(peft, back, base=model)
    assert "not copied: events.log" in capsys.readouterr().err
    kept = json.loads((back / "tokenizer_config.json").read_text())
    assert kept["eos_token"] == "<pad>" and "name_or_path" not in kept
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    end = {
        "content": "<|end|>",
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    larger = {**settings, "legacy": True, "eos_token": "<|end|>", "added_tokens_decoder": {str(size): end}}
    (peft / "tokenizer_config.json").write_text(json.dumps(larger))
    with pytest.raises(UserError, match="the model's vocabulary of"):
        open_source(model, adapter=peft)


def test_a_built_in_template_stays_as_jinja(base, tmp_path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base / "llama", folder)
    output = tmp_path / "output"
    finetune(
        base, output, model_name_or_path=folder, chat_template="llama2", model_format="hf", max_steps=1, save_steps=1
    )
    assert read_record(output / "model").name == "llama2"
    theirs = import_transformers().AutoTokenizer.from_pretrained(str(output / "model"))
    assert theirs.apply_chat_template(TALK, tokenize=False) == "<s>[INST] How many? [/INST] 2 apples </s>"
    codec = open_codec(str(output / "model"))
    assert choose_template("auto", codec, str(output / "model")).template.name == "llama2"
