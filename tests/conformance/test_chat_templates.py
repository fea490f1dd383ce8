"""Chat templates: text, ids and trained spans, compared with transformers' `apply_chat_template` for 30 families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from paddle_llm.config.local_files.chat_templates import copy_templates, read_record
from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.core.transformers_import import import_transformers
from paddle_llm.data.chat.renderer import RowRejected
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.instructions.conversation import ASSISTANT, Conversation, Turn
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.samples.encoded_samples import encode_all
from paddle_llm.data.tokenizers.text_codec import open_codec
from tests.conformance.template_families import CHATML, FAMILIES, MARKED, QWEN3, QWEN25, Family

SPECIALS = [
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|User|>",
    "<|Assistant|>",
    "<|end_of_sentence|>",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "[gMASK]",
    "<sop>",
    "<|observation|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|end_of_text|>",
    "<|tool_call|>",
    "<|image|>",
]
ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>")
SPACED = ("<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>")
TEXT = "The lamp is not on the table; 2 and 2 make 4. 灯不在桌子上。\n\n" * 20

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "é"}}}
U1, A1 = Turn("user", "2+2?"), Turn(ASSISTANT, "It is 4.")
U2, A2 = Turn("user", " Sure? "), Turn(ASSISTANT, "Yes,\nsure")
SYSTEM = Turn("system", "Be kind.")
THOUGHT = Turn(ASSISTANT, "4", fields={"reasoning_content": "2 and 2\nis 4"})
CALLING = Turn(ASSISTANT, "", fields={"tool_calls": [CALL]})
RESULT = Turn("tool", "4", fields={"name": "add"})


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([TEXT], trainer)
    made.add_special_tokens(SPECIALS)
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ORDINARY])
    return made


def spaced() -> Tokenizer:
    """Return a tokenizer of words with a blank before them, as in sentencepiece."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = [*SPACED, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=tokens)
    made.train_from_iterator([TEXT], trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPACED)]
    return Tokenizer.from_str(json.dumps(content))


class Both:
    """A folder as read by this project and by transformers."""

    def __init__(self, folder: Path, name: str | None = None):
        transformers = import_transformers()
        transformers.utils.logging.set_verbosity_error()
        self.folder, self.codec = folder, open_codec(str(folder))
        self.theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
        self.chosen = choose_template(name, self.codec, str(folder))
        self.encoder = InstructionEncoder(self.codec, self.chosen.template, max_length=4096)

    def reference(self, conversation: Conversation, **options: Any) -> Any:
        messages = [{"role": t.role, "content": t.content, **t.fields} for t in conversation.turns]
        date = {"date_string": "26 Jul 2024"}  # Llama 3.1's, if today's date is not requested
        return self.theirs.apply_chat_template(
            messages, **{"tokenize": False, **date, **conversation.fields, **options}
        )

    def text(self, conversation: Conversation) -> str:
        return self.chosen.template.render(conversation).text

    def ids(self, conversation: Conversation) -> list[int]:
        sample = self.encoder(conversation)
        last = int(sample.labels[-1])
        return [*sample.input_ids.tolist(), *([] if last == IGNORE_INDEX else [last])]

    def trained(self, conversation: Conversation) -> str:
        labels = self.encoder(conversation).labels.tolist()
        return self.codec.show([i for i in labels if i != IGNORE_INDEX])


@pytest.fixture(scope="session")
def tokenizers_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("chat")
    made = {"bytes": byte_level(), "sentencepiece": spaced()}
    for name, tokenizer in made.items():
        (root / name).mkdir()
        tokenizer.save(str(root / name / "tokenizer.json"))
    return {name: root / name for name in made}


def write_folder(folder: Path, tokenizer: Path, template: Any, kind: str = "bytes", **config: Any) -> Path:
    shutil.copytree(tokenizer, folder)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if kind == "sentencepiece":
        ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **ends, **config}
    if template is not None:
        values["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="session")
def families(tokenizers_of, tmp_path_factory) -> dict[str, Both]:
    root = tmp_path_factory.mktemp("families")
    return {
        name: Both(write_folder(root / name, tokenizers_of[one.tokenizer], one.source, one.tokenizer, **one.tokens))
        for name, one in FAMILIES.items()
    }


def talks(family: Family) -> list[Conversation]:
    """Return conversations that a family supports."""
    found = [(U1, A1), (U1, A1, U2, A2), (U2, Turn(ASSISTANT, " \n4 \n"))]
    if "system" in family.can:
        found += [(SYSTEM, U1, A1), (SYSTEM, U1, A1, U2, A2)]
    if "any_order" in family.can:
        found += [(SYSTEM, A1, U1, U2, A2)]
    made = [Conversation(turns, where="here") for turns in found]
    if "tools" in family.can:
        tools = {"tools": [TOOL]}
        made += [Conversation((U1, A1), where="here", fields=tools)]
        made += [Conversation((U1, CALLING, RESULT, A1, U2, A2), where="here", fields=tools)]
    if "documents" in family.can:
        documents = [{"title": "Sums", "text": "2+2=4"}]
        made += [Conversation((U1, A1), where="here", fields={"documents": documents})]
    if "reasoning" in family.can:
        made += [Conversation((U1, THOUGHT), where="here"), Conversation((U1, THOUGHT, U2, THOUGHT), where="here")]
        made += [Conversation((U1, Turn(ASSISTANT, "<think>\nsum\n</think>\n\n4")), where="here")]
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_text_ids_and_answers_equal_transformers(families: dict[str, Both], name: str) -> None:
    both, family = families[name], FAMILIES[name]
    for talk in talks(family):
        expected = both.reference(talk)
        assert both.text(talk) == expected
        asked = talk.prompt()
        prompt = both.encoder.prompt(talk).input_ids.tolist()
        assert prompt == both.reference(asked, tokenize=True, add_generation_prompt=True), talk
        ids, reference = both.ids(talk), both.reference(talk, tokenize=True)
        if family.end is None:  # EOS is trained instead of the blanks after the answer
            assert ids[-1] == both.codec.eos_id and ids[:-1] == reference[: len(ids) - 1]
            assert not both.codec.decode(reference[len(ids) - 1 :]).strip()
        else:
            assert ids == reference[: len(ids)]
            left = both.theirs.decode(reference[len(ids) :], skip_special_tokens=True)
            assert not left.strip()
        trained = both.trained(talk)
        assert trained.endswith(family.end or both.codec.show([both.codec.eos_id]))
        if talk.turns[-1].fields or not talk.turns[-1].content.strip():
            continue
        answers = [turn for turn in talk.turns if turn.role == ASSISTANT]
        for turn in answers:
            assert turn.content.split("</think>")[-1].strip() in trained, trained
        for turn in talk.turns:
            assert turn.role == ASSISTANT or turn.content.strip() not in trained or turn.role == "tool"


def test_trained_tokens_are_the_assistants_text_of_the_template(families: dict[str, Both]) -> None:
    two = Conversation((U1, A1, U2, A2))
    assert families["llama 3.1"].trained(two) == "It is 4.<|eot_id|>Yes,\nsure<|eot_id|>"
    assert families["phi 3"].trained(two) == "It is 4.<|end|>Yes,\nsure<|end|>"
    assert families["llama 2"].trained(two) == " It is 4. </s> Yes,\nsure </s>"
    assert families["vicuna"].trained(two) == " It is 4.<|endoftext|> Yes,\nsure<|endoftext|>"
    assert families["deepseek r1"].trained(two) == "It is 4.<|end_of_sentence|>Yes,\nsure<|end_of_sentence|>"
    calls = Conversation((U1, CALLING, RESULT, A1), fields={"tools": [TOOL]})
    call = '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2, "b": "é"}}]<|endoftext|>'
    assert families["mistral tools"].trained(calls) == call + " It is 4.<|endoftext|>"
    thought = "<think>\n2 and 2\nis 4\n</think>\n\n4<|im_end|>"
    once, twice = Conversation((U1, THOUGHT)), Conversation((U1, THOUGHT, U2, THOUGHT))
    assert families["qwen 3"].trained(once) == thought
    assert families["qwen 3"].trained(twice) == "4<|im_end|>" + thought  # the template drops earlier reasoning
    assert families["qwq"].trained(once) == thought.removeprefix("<think>\n")  # the prompt opens the block


# The mark includes the newline after the end token (SmolLM3), and the header.
NEWLINE_MARKED = MARKED.replace(
    "'<|im_end|>' }}{% endgeneration %}{{- '\\n' }}", "'<|im_end|>\\n' }}{% endgeneration %}"
)
HEADER_MARKED = NEWLINE_MARKED.replace("{{- '<|im_start|>assistant\\n' }}{% gen", "{%+ gen", 1).replace(
    "generation %}{{- mess", "generation %}{{- '<|im_start|>assistant\\n' + mess"
)


@pytest.mark.parametrize("source", [MARKED, NEWLINE_MARKED, HEADER_MARKED, "{# {% generation %} #}" + MARKED])
def test_marks_equal_the_assistant_masks_of_transformers(source: str, tokenizers_of, tmp_path) -> None:
    both = Both(write_folder(tmp_path / "t", tokenizers_of["bytes"], source))
    for talk in [*talks(FAMILIES["marked"]), Conversation((U1, Turn(ASSISTANT, "\n\nblank first")))]:
        sample = both.encoder(talk)
        reference = both.reference(talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        mask = reference["assistant_masks"]
        assert [int(label != IGNORE_INDEX) for label in sample.labels.tolist()] == mask[1 : len(sample.labels) + 1]


def test_a_mark_without_the_end_token_is_completed_and_reported(tokenizers_of, tmp_path, capsys) -> None:
    source = MARKED.replace(
        "message.content + '<|im_end|>' }}{% endgeneration %}",
        "message.content }}{% endgeneration %}{{- '<|im_end|>' }}",
    )
    assert source != MARKED
    both = Both(write_folder(tmp_path / "t", tokenizers_of["bytes"], source))
    talk = Conversation((U1, A1, U2, A2), where="here")
    assert both.trained(talk) == "It is 4.<|im_end|>Yes,\nsure<|im_end|>"
    encode_all([talk], both.encoder)
    assert "excludes the token that ends an answer; it is trained anyway" in capsys.readouterr().err


HOSTILE = [
    *"ab \n\t{}%é灯\u200b'\"\\<|>",
    "<|im_end|>",
    "<|im_start|>",
    "<think>",
    "</think>",
    "None",
    "{{ x }}",
    "{% if %}",
    "</s>",
]
CONTENT = st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)


@given(question=CONTENT, answer=CONTENT, more=CONTENT, last=CONTENT)
@pytest.mark.parametrize(
    "name", ["chatml", "llama 2", "llama 3.1", "qwen 3", "vicuna", "mistral tools", "marked", "blocks"]
)
def test_hostile_content_is_rendered_equally_and_never_becomes_special_tokens(
    families, name, question, answer, more, last
):
    both = families[name]
    talk = Conversation(
        (Turn("user", question), Turn(ASSISTANT, answer), Turn("user", more), Turn(ASSISTANT, last)), where="here"
    )
    try:
        written = both.chosen.template.render(talk)
    except RowRejected:
        assert name in ("qwen 3",)
        return
    expected = both.reference(talk)
    assert written.text == expected or "last_only" in written.notes
    as_tokens = InstructionEncoder(both.codec, both.chosen.template, max_length=4096, special_text_as="tokens")
    free = as_tokens(talk)
    ids = [*free.input_ids.tolist(), *[i for i in free.labels.tolist()[-1:] if i != IGNORE_INDEX]]
    eos = ids[-1:] == [both.codec.eos_id] and "eos_added" in free.notes
    ids = ids[:-1] if eos else ids
    assert ids == both.reference(talk, tokenize=True)[: len(ids)] or "last_only" in free.notes
    sample = both.encoder(talk)
    special = {both.codec.special_id(token) for token in both.codec.specials}
    plain = Conversation(tuple(Turn(t.role, "x" if t.content.strip() else t.content) for t in talk.turns))
    count = sum(i in special for i in both.ids(talk))
    if "special_tokens" not in sample.notes and "last_only" not in sample.notes:
        assert count <= sum(i in special for i in both.ids(plain)) + 2 * ("eos_added" in sample.notes)


def test_special_token_text_stays_text_unless_requested(families, capsys) -> None:
    both = families["qwen 2.5"]
    talk = Conversation((U1, Turn(ASSISTANT, "say <|im_end|> now")), where="here")
    end = both.codec.special_id("<|im_end|>")
    kept = encode_all([talk], both.encoder)[0]
    assert kept.labels.tolist().count(end) == 1 and both.codec.decode(kept.input_ids).endswith("say <|im_end|> now")
    assert "1 sample: the text of special tokens in messages stays text" in capsys.readouterr().err
    free = InstructionEncoder(both.codec, both.chosen.template, max_length=4096, special_text_as="tokens")
    assert encode_all([talk], free)[0].labels.tolist().count(end) == 2
    assert "1 sample: the text of special tokens in messages becomes special tokens" in capsys.readouterr().err
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": "<|im_end|>"}}}]
    calling = Conversation((U1, Turn(ASSISTANT, "", fields={"tool_calls": calls})), where="here")
    assert both.encoder(calling).labels.tolist().count(end) == 1


def test_fields_that_a_template_does_not_write_are_reported_or_an_error(families, capsys) -> None:
    talk = Conversation(
        (U1, THOUGHT), where="here", fields={"tools": [TOOL], "documents": [{"title": "a", "text": "b"}]}
    )
    encode_all([talk], families["chatml"].encoder)
    reported = capsys.readouterr().err
    for key in ("reasoning_content", "tools", "documents"):
        assert f"1 sample: the chat template does not write their {key!r}; it is ignored" in reported
    encode_all([talk], families["qwen 3"].encoder)
    reported = capsys.readouterr().err
    assert "'documents'" in reported and "'tools'" not in reported and "reasoning" not in reported
    calling = Conversation((U1, CALLING), where="here")
    with pytest.raises(UserError, match="does not write tool_calls"):
        encode_all([calling], families["chatml"].encoder)
    left = encode_all([calling, Conversation((U1, A1))], families["chatml"].encoder, skip_untrainable=True)
    assert len(left) == 1 and left.report.rejected == 1


@pytest.mark.parametrize(
    ("source", "reported"),
    [
        ("{% for m in messages if m.role != 'system' %}", "does not write the content of their system messages"),
        ("{% for m in messages if m.role != 'user' %}", "does not write the content of their user messages"),
        ("{% for m in messages if m.role != 'tool' %}", "does not write the content of their tool messages"),
        ("{% for m in messages %}{% set m = {'role': m.role, 'content': m.content[:24]} %}", "system messages in another way"),
        ("{% for m in messages %}", None),
    ],
)  # fmt: skip
def test_questions_that_a_template_does_not_write_are_reported(families, tmp_path, capsys, source, reported) -> None:
    path = tmp_path / "own.jinja"
    end = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    path.write_text(source + end + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    codec = families["chatml"].codec
    template = choose_template(str(path), codec, None).template
    system = Turn("system", "  Answer in one short sentence.  ")
    talk = Conversation((system, U1, A1, Turn("tool", "a result of the tool"), A2), where="here")
    encode_all([talk], InstructionEncoder(codec, template, max_length=512))
    found = [line for line in capsys.readouterr().err.splitlines() if "messages" in line]
    assert len(found) == (reported is not None)
    assert reported is None or "1 sample: the chat template" in found[0] and reported in found[0]
    prompt = InstructionEncoder(codec, template, max_length=512).prompt(talk)
    assert len(prompt.notes) == (reported is not None)  # `generate` reports them as well


def test_a_template_that_writes_no_answers_is_an_error(families, tmp_path) -> None:
    """A dropped answer is an error; a partly written one is trained (Qwen 3 drops earlier reasoning)."""
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.role == 'user' else m.answer }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    codec = families["chatml"].codec
    encoder = InstructionEncoder(codec, choose_template(str(path), codec, None).template, max_length=512)
    with pytest.raises(UserError, match="does not write the content of answers"):
        encode_all([Conversation((U1, A1), where="here")], encoder)


def test_a_template_raises_the_same_error_as_in_transformers(families) -> None:
    for name, talk in (("gemma", (SYSTEM, U1, A1)), ("mistral", (U1, U2, A1)), ("llama 3.1", (U1, Turn(ASSISTANT, "", fields={"tool_calls": [CALL, CALL]})))):  # fmt: skip
        both, conversation = families[name], Conversation(talk, where="a, line 3")
        with pytest.raises(Exception) as theirs:
            both.reference(conversation)
        with pytest.raises(RowRejected) as ours:
            both.encoder(conversation)
        assert str(theirs.value) in str(ours.value) and str(ours.value).startswith("a, line 3: ")


def test_prompts_that_differ_between_training_and_generation_are_reported(families, capsys) -> None:
    mistral, r1 = families["mistral tools"], families["deepseek r1"]
    talk = Conversation(
        (SYSTEM, U1, A1), where="here"
    )  # the template writes the system text only after the last question
    assert mistral.text(talk) == mistral.reference(talk) and "Be kind." not in mistral.text(talk)
    assert mistral.trained(talk) == " It is 4.<|endoftext|>"
    encode_all([talk], mistral.encoder)
    assert "writes an answered question differently" in capsys.readouterr().err
    encode_all([Conversation((U1, A1), where="here")], r1.encoder)
    assert "opens a block" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["<|im_start|>{{ m.role }}\n", "{{ '<|user|>' if m.role == 'user' else '\n' }}"])
def test_a_header_trained_without_a_generation_prompt_is_reported(families, tmp_path, capsys, header) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}" + header + "{{ m.content }}<|im_end|>{% endfor %}")
    codec = families["chatml"].codec
    template = choose_template(str(tmp_path / "own.jinja"), codec, None).template
    encode_all([Conversation((U1, A1), where="here")], InstructionEncoder(codec, template, max_length=512))
    reported = [line for line in capsys.readouterr().err.splitlines() if "no generation prompt" in line]
    assert len(reported) == ("role }}" in header)  # a single blank is not a header


@pytest.mark.parametrize(("files", "config", "tools", "expected"), [
    ({}, [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}], False, "D"),
    ({}, [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}], True, "T"),
    ({"chat_template.jinja": "J"}, "C", False, "J"),
    ({"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"}, "C", True, "T"),
    ({"chat_template.jinja": "J", "additional_chat_templates/rag.jinja": "R"}, None, True, "J"),
    ({"additional_chat_templates/tool_use.jinja": "T"}, None, True, "T"),
])  # fmt: skip
def test_the_chosen_template_equals_transformers(tokenizers_of, tmp_path, files, config, tools, expected) -> None:
    def source(text: str) -> str:
        return text + "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"

    named = [{**one, "template": source(one["template"])} for one in config] if isinstance(config, list) else config
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], source(named) if isinstance(named, str) else named)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source(text))
    both = Both(folder)
    talk = Conversation((U1, A1), where="here", fields={"tools": [TOOL]} if tools else {})
    written = both.chosen.template.render(talk).text
    assert written == both.reference(talk) and written.startswith(expected)


def test_a_list_without_default_is_an_error_with_its_names(tokenizers_of, tmp_path) -> None:
    named = [{"name": "rag", "template": CHATML}, {"name": "other", "template": QWEN25}]
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], named)
    with pytest.raises(UserError, match="none of which is named default: rag, other"):
        Both(folder)
    chosen = Both(folder, "other")
    assert chosen.text(Conversation((U1, A1))) == chosen.reference(Conversation((U1, A1)), chat_template=QWEN25)
    assert any("rag, other; used: other" in line for line in chosen.chosen.notices)


def test_a_date_is_never_todays(tokenizers_of, tmp_path, families) -> None:
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], "{{ strftime_now('%d %b %Y') }}" + CHATML)
    codec, talk = open_codec(str(folder)), Conversation((U1, A1))
    with pytest.raises(UserError, match=r"strftime_now.*--chat_template_date"):
        choose_template(None, codec, str(folder)).template.render(talk)
    dated = choose_template(None, codec, str(folder), date="2025-02-03")
    assert dated.template.render(talk).text.startswith("03 Feb 2025<|im_start|>")
    with pytest.raises(UserError, match="not a date"):
        choose_template(None, codec, str(folder), date="today")
    llama = families["llama 3.1"]
    assert "Today Date: 26 Jul 2024" in llama.text(talk)
    assert any("strftime_now" in line for line in llama.chosen.notices)


def test_the_template_of_a_training_is_saved_and_verified(families, tokenizers_of, tmp_path) -> None:
    for number, name in enumerate(("qwen 3", "named", "chatml")):
        folder = write_folder(tmp_path / f"t{number}", tokenizers_of["bytes"], "{{ 'other' }}")
        trained = families[name].chosen.as_trained()
        trained.write(folder)
        both = Both(folder)
        for talk in talks(FAMILIES[name]):
            assert both.reference(talk) == families[name].reference(talk) == both.text(talk)
        assert both.chosen.why == "as in the model's training"
        (tmp_path / f"copy{number}").mkdir()
        copy_templates(folder, tmp_path / f"copy{number}")
        assert read_record(folder) is not None and read_record(tmp_path / f"copy{number}") == read_record(folder)
        (folder / "chat_template.jinja").write_text(QWEN3 + " ")
        with pytest.raises(UserError, match="is not the one that the model was trained with"):
            Both(folder)
        assert Both(folder, "chatml").chosen.template.name == "chatml"
    families["chatml"].chosen.as_trained("tokens").write(folder)
    assert Both(folder).chosen.special_text_as == "tokens" and families["chatml"].chosen.special_text_as == "text"


@pytest.mark.parametrize("name", ["default", "chatml", "alpaca", "chatglm2"])
def test_a_built_in_template_is_saved_as_jinja(tokenizers_of, tmp_path, name) -> None:
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], None)
    codec = open_codec(str(folder))
    chosen = choose_template(name, codec, str(folder))
    chosen.as_trained().write(folder)
    again = Both(folder)
    assert again.chosen.template.name == name and again.chosen.why == "as in the model's training"
    for turns in ((U1, A1), (SYSTEM, U1, A1, U2, A2)):
        talk = Conversation(turns)
        assert again.ids(talk) == again.reference(talk, tokenize=True)[: len(again.ids(talk))]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "jinja", "digests": 3}', '{"name": 1, "digests": {"default": 2}}']
)
def test_a_broken_record_is_an_error(tmp_path, text) -> None:
    (tmp_path / "training_chat_template.json").write_text(text)
    with pytest.raises(UserError, match=r"training_chat_template\.json"):
        read_record(tmp_path)


def test_generation_in_a_comment_marks_nothing(families, tokenizers_of, tmp_path) -> None:
    talk = Conversation((U1, A1, U2, A2))
    both = Both(write_folder(tmp_path / "t", tokenizers_of["bytes"], "{# {% generation %} #}" + CHATML))
    assert both.trained(talk) == "It is 4.<|im_end|>Yes,\nsure<|im_end|>"


def test_an_eos_token_is_special_despite_its_entry(tokenizers_of, tmp_path) -> None:
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], CHATML, eos_token="<|im_end|>")
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<|im_end|>"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert Both(folder).trained(Conversation((U1, A1))) == "It is 4.<|im_end|>"  # once


@pytest.mark.parametrize(
    "source",
    [
        "",
        "chat_template.jinja",
        "{% for m in messages %}{{ m.role }}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_without_the_content_is_an_error(source: str, tokenizers_of, tmp_path) -> None:
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], source)
    with pytest.raises(UserError, match="neither the question nor the answer"):
        Both(folder)


def test_other_template_files_are_read_or_an_error(tokenizers_of, tmp_path) -> None:
    folder = write_folder(tmp_path / "t", tokenizers_of["bytes"], None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))  # a processor's
    assert Both(folder).text(Conversation((U1, A1))).startswith("<|im_start|>user")
    (folder / "chat_template.json").write_text(
        json.dumps({"conversation": ["{{user}}", "{{bot}}"], "query": "{{query}}"})
    )
    with pytest.raises(UserError, match="PaddleNLP's format"):
        Both(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    assert any("chat_template.json also contains" in line for line in Both(folder).chosen.notices)
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_bytes("\ufeffx".encode())
    with pytest.raises(UserError, match="byte order mark"):
        Both(folder)
    (folder / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="git-lfs pointer"):
        Both(folder)
