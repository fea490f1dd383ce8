"""Truncation, loss and Jinja templates of encoded samples, compared with PaddleNLP and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.samples.encode import InstructionEncoder, PromptTooLong
from paddle_llm.data.samples.encoded_samples import encode_all
from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec

LONG = "the quick brown fox jumps over the lazy dog and the moon 床前明月光 " * 4


@pytest.fixture(scope="module")
def codec(tokenizer_folder: str) -> TextCodec:
    return open_codec(tokenizer_folder)


def talk(*texts: str, flags: dict[int, bool] | None = None, system: str = "") -> Conversation:
    roles = ("user", "assistant")
    turns = [Turn(roles[i % 2], text, (flags or {}).get(i)) for i, text in enumerate(texts)]
    return Conversation((*([Turn("system", system)] if system else []), *turns), where=f"f, line {len(texts)}")


def paddlenlp_example(
    tokenizer, source: str, target: str, src_length: int, max_length: int
) -> tuple[list[int], list[int]]:
    """Input ids and labels by PaddleNLP's tokenizer, in the steps of its documentation: the source cut from the left to src_length,
    the target to what is left of max_length, EOS only where it was not cut, shifted by one."""
    tokenizer.truncation_side = "left"  # 3.0.0b4 ignores the argument of that name
    prompt = tokenizer(source, max_length=src_length, truncation=True, add_special_tokens=True)
    tokenizer.truncation_side = "right"
    rest = max_length - len(prompt["input_ids"])
    answer = tokenizer(target, max_length=rest, truncation=True, add_special_tokens=False)
    ids = answer["input_ids"] + ([tokenizer.eos_token_id] if len(answer["input_ids"]) < rest else [])
    everything = prompt["input_ids"] + ids
    return everything[:-1], ([IGNORE_INDEX] * len(prompt["input_ids"]) + ids)[1:]


def test_truncation_equals_paddlenlp(codec: TextCodec, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    fits = len(codec.encode("an answer"))
    cases = [(8, 40), (20, 21 + fits), (20, 20 + fits), (300, 310), (300, 600)]
    for source, target in ((LONG, LONG), (LONG, "an answer"), ("ask", LONG), ("ask", "an answer")):
        for src_length, max_length in cases:
            encoder = InstructionEncoder(codec, TEMPLATES["default"], src_length=src_length, max_length=max_length)
            sample = encoder(talk(source, target))
            expected = paddlenlp_example(tokenizer, source, target, src_length, max_length)
            assert (sample.input_ids.tolist(), sample.labels.tolist()) == expected, (source[:3], target[:3], src_length)
            assert sample.cut_question == (len(codec.encode(source)) + 1 > src_length)
            assert sample.cut_answer == (sample.labels[-1] != codec.eos_id)


def test_the_template_around_a_question_is_never_truncated(codec: TextCodec) -> None:
    encoder = InstructionEncoder(codec, TEMPLATES["llama2"], src_length=50, max_length=100)
    sample = encoder(talk(LONG, "yes", system="Hi"))
    whole = InstructionEncoder(codec, TEMPLATES["llama2"], max_length=1000)(talk(LONG, "yes", system="Hi"))
    assert int((sample.labels == IGNORE_INDEX).sum()) == 49 and sample.cut_question and not sample.cut_answer
    head = len(codec.encode("[INST] <<SYS>>\nHi\n<</SYS>>\n\n")) + 1
    assert sample.input_ids[:head].tolist() == whole.input_ids[:head].tolist()
    assert sample.input_ids[head:].tolist() == whole.input_ids[head - len(sample.input_ids) :].tolist()
    with pytest.raises(PromptTooLong, match="the template's .* tokens around the question exceed --src_length"):
        encoder(talk("a", "yes", system=LONG))


def test_the_oldest_rounds_are_dropped_and_the_system_text_kept(codec: TextCodec) -> None:
    encoder = InstructionEncoder(codec, TEMPLATES["llama2"], max_length=120)
    sample = encoder(talk(LONG, "one", "two", "three", "four", "five", system="Hi"))
    assert (sample.dropped_rounds, sample.cut_question, sample.cut_answer) == (1, False, False)
    short = encoder(talk("two", "three", "four", "five", system="Hi"))
    assert sample.input_ids.tolist() == short.input_ids.tolist() and sample.labels.tolist() == short.labels.tolist()
    last = encoder(talk("q", "a", "two", LONG))
    assert (
        last.cut_answer and last.dropped_rounds == 1 and len(last.input_ids) == 119 and last.labels[-1] != codec.eos_id
    )
    prompt = InstructionEncoder(codec, TEMPLATES["llama2"], max_length=120, src_length=25).prompt(
        talk(LONG, "a", "two", "b")
    )
    assert prompt.input_ids.tolist() == [1, *codec.encode("[INST] two [/INST]")]


def test_tgt_length_includes_the_end(codec: TextCodec) -> None:
    size = len(codec.encode("an answer")) + 1
    for tgt_length, is_cut in ((size, False), (size - 1, True)):
        encoder = InstructionEncoder(codec, TEMPLATES["default"], max_length=200, tgt_length=tgt_length)
        sample = encoder(talk("ask", "an answer"))
        assert sample.answer_tokens == tgt_length and sample.cut_answer == is_cut
        assert (sample.labels[-1] == codec.eos_id) != is_cut


def trained_text(codec: TextCodec, conversation: Conversation, loss_on: str, template: str = "default") -> str:
    sample = InstructionEncoder(codec, TEMPLATES[template], max_length=500, loss_on=loss_on)(conversation)
    return codec.show([i for i in sample.labels.tolist() if i != IGNORE_INDEX])


def test_loss_follows_the_options_and_flags(codec: TextCodec) -> None:
    plain = talk("ask", "one", "more", "two")
    assert trained_text(codec, plain, "answers") == " one</s> two</s>"
    assert trained_text(codec, plain, "last") == " two</s>"
    assert trained_text(codec, plain, "all") == " ask one</s> more two</s>"
    flagged = talk("ask", "one", "more", "two", flags={1: True, 3: False})
    for loss_on in ("answers", "last"):
        assert trained_text(codec, flagged, loss_on) == " one</s>"
    with pytest.raises(UserError, match="--loss_on question: unknown. Use one of answers, last, all"):
        trained_text(codec, plain, "question")


def test_labels_are_the_next_tokens(codec: TextCodec) -> None:
    sample = InstructionEncoder(codec, TEMPLATES["default"], max_length=500, loss_on="all")(talk("ask", LONG))
    assert sample.labels[:-1].tolist() == sample.input_ids[1:].tolist()


@pytest.mark.parametrize(("lengths", "why"), [
    ({"max_length": 1}, "too small. Use at least 2"), ({"max_length": 20, "src_length": 20}, "must leave tokens for an answer"),
])  # fmt: skip
def test_lengths_without_tokens_for_an_answer_are_an_error(codec: TextCodec, lengths: dict[str, int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        InstructionEncoder(codec, TEMPLATES["default"], **lengths)


def test_truncation_is_counted_and_untrainable_samples_are_an_error(codec: TextCodec, capsys) -> None:
    encoder = InstructionEncoder(codec, TEMPLATES["default"], max_length=60, src_length=20)
    rows = [talk("ask", "ok"), talk(LONG, "ok"), talk("ask", LONG), talk("a", "b", LONG, LONG)]
    report = encode_all(rows, encoder).report
    assert (report.samples, report.cut_questions, report.cut_answers, report.dropped_rounds) == (4, 2, 2, 1)
    messages = capsys.readouterr().err
    assert "2 answers truncated, without EOS (first: f, line 2; f, line 4)" in messages
    dropped = encode_all(rows, encoder, long_samples="drop")
    assert len(dropped) == 1 and dropped.report.too_long == 3 and "3 samples skipped: longer" in capsys.readouterr().err
    with pytest.raises(UserError, match="Longer than --max_length 60 .*: 3 samples, the first: f, line 2"):
        encode_all(rows, encoder, long_samples="refuse")
    mute = [*rows, talk("ask", "ok", flags={1: False}), talk("ask", "ok", system=LONG)]
    with pytest.raises(UserError, match="The template alone is longer than --src_length .*: 1 sample, the first: "):
        encode_all(mute, encoder)
    kept = encode_all(mute, encoder, skip_untrainable=True)
    assert len(kept) == 4 and (kept.report.no_loss, kept.report.prompt_too_long) == (1, 1)
    messages = capsys.readouterr().err
    assert "1 sample skipped: no token has a loss" in messages and "the template alone is longer" in messages


# Templates in Hugging Face folders: Zephyr's, and one that marks the assistant's text.
JINJA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<<{{ m.content }}>>\n{% elif m.role == 'user' %}"
    "{% if loop.index0 > 40 %}{{ raise_exception('too many') }}{% endif %}[Q] {{ m.content | trim }}\n"
    "{% else %}[A] {{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)
MARKED = (
    "{%- for m in messages %}\n{%- if m.role == 'assistant' %}\n{{- '[A]' }}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}\n{%- else %}\n{{- '[Q]' + m.content }}\n{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '[A]' }}{% endif %}"
)


def jinja_encoder(folder: Path, tokenizer_folder: str, source: str, **options) -> InstructionEncoder:
    for file in Path(tokenizer_folder).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": source, "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    codec = open_codec(str(folder))
    chosen = choose_template(None, codec, str(folder))
    assert chosen.why == "the tokenizer's own chat template"
    return InstructionEncoder(codec, chosen.template, **{"max_length": 500, **options})


def test_a_jinja_template_gives_its_text_and_its_answers(tmp_path: Path, tokenizer_folder: str) -> None:
    encoder = jinja_encoder(tmp_path, tokenizer_folder, JINJA)
    codec = encoder.codec
    sample = encoder(talk(" ask ", "one", "more", "two", system="Hi"))
    text = codec.show([*sample.input_ids.tolist(), codec.eos_id])
    # The tokenizer adds a blank after a special token.
    assert text == "<s> <<Hi>>\n[Q] ask\n[A] one</s> \n[Q] more\n[A] two</s>"
    assert codec.show([i for i in sample.labels.tolist() if i != IGNORE_INDEX]) == " one</s> two</s>"
    assert encoder.stop_ids == [codec.eos_id]
    prompt = encoder.prompt(talk("ask", "one", "more", "two")).input_ids.tolist()
    assert codec.show(prompt) == "<s> [Q] ask\n[A] one</s> \n[Q] more\n[A]"
    whole = encoder(talk("ask", "one", "more", "two")).input_ids.tolist()
    assert whole[: len(prompt)] == prompt
    cut = jinja_encoder(tmp_path, tokenizer_folder, JINJA, src_length=20)(talk(LONG, "ok"))
    assert cut.cut_question and int((cut.labels == IGNORE_INDEX).sum()) == 19
    assert codec.show(cut.input_ids).startswith("<s> [Q] ") and codec.show(cut.input_ids).endswith("明月光\n[A] ok")
    with pytest.raises(UserError, match="f, line 44: the chat template of .* rejects it: TemplateError: too many"):
        encoder(talk(*["a"] * 44))


def test_the_answer_marks_of_a_jinja_template_are_used(tmp_path: Path, tokenizer_folder: str) -> None:
    encoder = jinja_encoder(tmp_path, tokenizer_folder, MARKED)
    codec = encoder.codec
    sample = encoder(talk("ask", "one", "more", "two"))
    assert codec.show([*sample.input_ids.tolist(), codec.eos_id]) == " [Q]ask[A]one</s> [Q]more[A]two</s>"
    assert codec.show([i for i in sample.labels.tolist() if i != IGNORE_INDEX]) == "one</s>two</s>"


def test_answers_that_a_jinja_template_rewrites_are_not_trained(tmp_path: Path, tokenizer_folder: str, capsys) -> None:
    forgets = "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '...' }}{% endfor %}"
    encoder = jinja_encoder(tmp_path, tokenizer_folder, forgets)
    sample = encode_all([talk("ask", "one", "more", "two")], encoder)[0]
    assert encoder.codec.show(sample.input_ids) == " ask...moretwo"
    assert encoder.codec.show([i for i in sample.labels.tolist() if i != IGNORE_INDEX]) == "two</s>"
    reported = capsys.readouterr().err
    assert "1 sample: the chat template rewrites earlier answers when messages follow" in reported
    assert "EOS is trained after them" in reported


def test_a_broken_jinja_template_is_an_error(tmp_path: Path, tokenizer_folder: str) -> None:
    with pytest.raises(UserError, match="not valid Jinja .line 1"):
        jinja_encoder(tmp_path, tokenizer_folder, "{% for %}")
    with pytest.raises(UserError, match="SecurityError"):
        jinja_encoder(tmp_path, tokenizer_folder, "{{ messages.append(1) }}")(talk("ask", "one"))
