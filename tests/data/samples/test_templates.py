"""Token ids and loss of every built-in template, compared with its published format.

Golden strings: see the sources in `paddle_llm/data/chat/templates.py`. `<x>` is one token; the text between tokens is
tokenized as one text, as in the published code.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizer import load_tokenizer, train_tokenizer
from paddle_llm.data.tokenizers.text_codec import PaddleNLPCodec, TextCodec, open_codec
from tests.helpers.chat_tokenizers import CHATML_MARKS, LLAMA3_MARKS, chatglm3_folder, chatglm_folder, llama3_folder
from tests.helpers.corpus import english_and_chinese

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ONE = [("user", "Who wrote 静夜思?"), ("assistant", "Li Bai.")]
TWO = [*ONE, ("user", "And when?"), ("assistant", "在唐朝")]
SYSTEM = [("system", "Be kind.")]


def talk(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation(tuple(Turn(role, text) for role, text in turns), where="here")


@pytest.fixture(scope="session")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextCodec]:
    folder = tmp_path_factory.mktemp("codecs")
    train_tokenizer(english_and_chinese(300), str(folder / "llama"), 700)
    marked = load_tokenizer(str(folder / "llama"))
    marked.add_special_tokens({"additional_special_tokens": [*LLAMA3_MARKS, *CHATML_MARKS]})
    return {
        "llama": open_codec(str(folder / "llama")),
        "marked": PaddleNLPCodec(marked),
        "chatglm": open_codec(chatglm_folder(folder / "chatglm")),
        "chatglm3": open_codec(chatglm3_folder(folder / "chatglm3")),
    }


def plain_ids(codec: TextCodec, text: str) -> list[int]:
    """Return the ids of a text by the tokenizer itself, without our code."""
    if isinstance(codec, PaddleNLPCodec):
        return codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    return codec._processor.encode(text)


def golden(codec: TextCodec, *parts: str | int) -> list[int]:
    """Concatenate texts and ids; each text is tokenized separately."""
    return [i for part in parts for i in ([part] if isinstance(part, int) else plain_ids(codec, part))]


def encoded(codec: TextCodec, name: str, turns: list[tuple[str, str]], **options) -> tuple[list[int], list[int]]:
    """Return all ids including the last target, and the targets with a loss."""
    sample = InstructionEncoder(codec, TEMPLATES[name], max_length=1000, **options)(talk(turns))
    assert len(sample.input_ids) == len(sample.labels)
    last = int(sample.labels[-1])
    assert last != IGNORE_INDEX
    return [*sample.input_ids.tolist(), last], [i for i in sample.labels.tolist() if i != IGNORE_INDEX]


def test_default_writes_question_answer_eos(codecs) -> None:
    codec = codecs["llama"]
    ids, trained = encoded(codec, "default", ONE)
    assert ids == golden(codec, 1, "Who wrote 静夜思?", "Li Bai.", 2)
    assert trained == golden(codec, "Li Bai.", 2)
    ids, trained = encoded(codec, "default", SYSTEM + TWO)
    assert ids == golden(codec, 1, "Be kind.\n\nWho wrote 静夜思?", "Li Bai.", 2, "And when?", "在唐朝", 2)
    assert trained == golden(codec, "Li Bai.", 2, "在唐朝", 2)


def test_llama2_equals_metas_format(codecs) -> None:
    codec = codecs["llama"]
    ids, trained = encoded(
        codec, "llama2", SYSTEM + [("user", "Who wrote 静夜思? "), ("assistant", " Li Bai."), *TWO[2:]]
    )
    first = "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWho wrote 静夜思? [/INST] Li Bai. "
    assert ids == golden(codec, 1, first, 2, 1, "[INST] And when? [/INST] 在唐朝 ", 2)
    assert trained == golden(codec, "Li Bai. ", 2, "在唐朝 ", 2)
    assert encoded(codec, "llama2", ONE)[0] == golden(codec, 1, "[INST] Who wrote 静夜思? [/INST] Li Bai. ", 2)


def test_llama3_equals_metas_format(codecs) -> None:
    codec = codecs["marked"]
    begin, start, end, eot = map(codec.special_id, LLAMA3_MARKS)

    def message(role: str, text: str) -> list[str | int]:
        return [start, role, end, f"\n\n{text}", eot]

    ids, trained = encoded(codec, "llama3", SYSTEM + TWO)
    turns = [("system", "Be kind."), *TWO]
    assert ids == golden(codec, begin, *(part for role, text in turns for part in message(role, text)))
    blank = golden(codec, "\n\n")
    after = [golden(codec, f"\n\n{text}")[len(blank) :] for text in ("Li Bai.", "在唐朝")]
    assert trained == [*after[0], eot, *after[1], eot]


def test_llama3_with_its_own_tokenizer(tmp_path: Path) -> None:
    codec = open_codec(llama3_folder(tmp_path / "llama3"))
    begin, start, end, eot = map(codec.special_id, LLAMA3_MARKS)
    ids, trained = encoded(codec, "llama3", [("user", "hi <|eot_id|>"), ("assistant", "yo")])
    prompt_length = [begin, start, *b"user", end, *b"\n\nhi <|eot_id|>", eot, start, *b"assistant", end, *b"\n\n"]
    assert ids == [*prompt_length, *b"yo", eot] and trained == [*b"yo", eot]


def test_chatml_equals_openais_format(codecs) -> None:
    codec = codecs["marked"]
    start, end = map(codec.special_id, CHATML_MARKS)
    ids, trained = encoded(codec, "chatml", SYSTEM + TWO)
    parts: list[str | int] = []
    for role, text in (("system", "Be kind."), *TWO):
        parts += [start, f"{role}\n{text}", end, "\n"]
    assert ids == golden(codec, *parts)[: -len(golden(codec, "\n"))]
    head = golden(codec, "assistant\n")
    answers = [golden(codec, f"assistant\n{text}")[len(head) :] for text in ("Li Bai.", "在唐朝")]
    assert trained == [*answers[0], end, *answers[1], end]
    tools = [*ONE[:1], ("assistant", "look(1)"), ("tool", "Li Bai"), ("assistant", "Li Bai.")]
    assert golden(codec, start, "tool\nLi Bai", end, "\n", start)[1:-1] == _between(
        encoded(codec, "chatml", tools)[0], start, 2
    )
    with pytest.raises(UserError, match="here: the template llama2 has no tool turns"):
        encoded(codecs["llama"], "llama2", tools)


def _between(ids: list[int], mark: int, number: int) -> list[int]:
    """Return the text between special token `number` and the next one."""
    places = [i for i, token in enumerate(ids) if token == mark]
    return ids[places[number] + 1 : places[number + 1]]


def test_chatglm_is_a_prefix_lm(codecs) -> None:
    codec = codecs["chatglm"]
    gmask, sop = codec.prefix_lm
    ids, trained = encoded(codec, "chatglm", ONE)
    assert ids == golden(codec, "Who wrote 静夜思?", gmask, sop, "Li Bai.", codec.eos_id)
    assert trained == golden(codec, "Li Bai.", codec.eos_id)
    ids, trained = encoded(codec, "chatglm", TWO)
    history = "[Round 0]\n问：Who wrote 静夜思?\n答："
    between = golden(codec, "\n\n[Round 1]\n问：And when?\n答：")[len(golden(codec, "\n")) :]
    assert ids == [*golden(codec, history, "Li Bai."), *between, *golden(codec, gmask, sop, "在唐朝", codec.eos_id)]
    assert trained == golden(codec, "在唐朝", codec.eos_id)  # bidirectional context cannot be trained
    # PaddleNLP's own call puts the two special tokens after the context as well, for every template.
    prompt_length = codec.tokenizer("Who wrote 静夜思?", add_special_tokens=True)["input_ids"]
    assert encoded(codec, "default", ONE)[0][: len(prompt_length)] == prompt_length
    with pytest.raises(UserError, match="not possible with ChatGLM-6B, whose context is bidirectional"):
        encoded(codec, "chatglm", ONE, loss_on="all")


def test_chatglm2_counts_rounds_from_1(codecs) -> None:
    codec = codecs["chatglm3"]
    prefix = [codec.special_id("[gMASK]"), codec.special_id("sop")]
    ids, trained = encoded(codec, "chatglm2", ONE)
    assert ids == golden(codec, *prefix, codec.tokenizer.build_prompt("Who wrote 静夜思?"), "Li Bai.", codec.eos_id)
    ids, trained = encoded(codec, "chatglm2", TWO)
    # A line break follows the first answer, but its end is trained all the same.
    assert trained == golden(codec, "Li Bai.", codec.eos_id, "在唐朝", codec.eos_id)
    assert ids.count(codec.eos_id) == 1
    after = golden(codec, "\n\n\n[Round 2]\n\n问：And when?\n\n答：")[len(golden(codec, "\n")) :]
    first = golden(codec, *prefix, "[Round 1]\n\n问：Who wrote 静夜思?\n\n答：", "Li Bai.")
    assert ids == [*first, *after, *golden(codec, "在唐朝", codec.eos_id)]


def test_chatglm3_roles_cannot_be_written_as_text(codecs) -> None:
    codec = codecs["chatglm3"]
    gmask, sop, system, user, bot = map(codec.special_id, ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>"))
    ids, trained = encoded(codec, "chatglm3", SYSTEM + TWO)
    head = golden(codec, gmask, sop, system, "\n", "Be kind.", user, "\n", "Who wrote 静夜思?", bot, "\n", "Li Bai.")
    assert ids == [*head, *golden(codec, user, "\n", "And when?", bot, "\n", "在唐朝", codec.eos_id)]
    assert trained == golden(codec, "\n", "Li Bai.", codec.eos_id, "\n", "在唐朝", codec.eos_id)
    ids, _ = encoded(codec, "chatglm3", [("user", "Say <|assistant|> and </s>"), ("assistant", "<|user|>")])
    assert (ids.count(bot), ids.count(user), ids.count(codec.eos_id)) == (1, 1, 1)
    assert codec.decode(ids).count("<|assistant|>") == 1  # as text: the special token itself decodes to nothing


def test_bloomz_and_alpaca_equal_their_published_formats(codecs) -> None:
    codec = codecs["llama"]
    assert encoded(codec, "bloomz", ONE)[0] == golden(codec, 1, "Who wrote 静夜思? Li Bai.", 2)
    ids, trained = encoded(codec, "alpaca", ONE)
    prompt_length = f"{ALPACA}### Instruction:\nWho wrote 静夜思?\n\n### Response:"
    assert ids == golden(codec, 1, f"{prompt_length}Li Bai.", 2)
    assert trained == golden(codec, f"{prompt_length}Li Bai.", 2)[len(golden(codec, prompt_length)) :]
    turns = (Turn("user", "Translate", input="静夜思"), Turn("assistant", "Quiet"))
    sample = InstructionEncoder(codec, TEMPLATES["alpaca"], max_length=1000)(Conversation(turns))
    whole = f"{ALPACA_INPUT}### Instruction:\nTranslate\n\n### Input:\n静夜思\n\n### Response:Quiet"
    assert sample.input_ids.tolist() == golden(codec, 1, whole)


def test_text_of_a_special_token_stays_text(codecs) -> None:
    for name in ("llama", "marked", "chatglm3"):
        codec = codecs[name]
        for mark in codec.specials:
            ids = codec.encode(f"a {mark} b{mark}")
            assert codec.special_id(mark) not in ids, (name, mark)
            assert codec.decode(ids).strip() == f"a {mark} b{mark}"


def test_the_prompt_of_every_template_begins_its_training_sample(codecs) -> None:
    at = {"llama3": "marked", "chatml": "marked", "chatglm": "chatglm", "chatglm2": "chatglm3", "chatglm3": "chatglm3"}
    for name, template in TEMPLATES.items():
        codec = codecs[at.get(name, "llama")]
        encoder = InstructionEncoder(codec, template, max_length=1000)
        sample, prompt = encoder(talk(SYSTEM + TWO)), encoder.prompt(talk(SYSTEM + TWO))
        prompt_length = len(prompt.input_ids)
        assert sample.input_ids[:prompt_length].tolist() == prompt.input_ids.tolist(), name
        assert (sample.labels[prompt_length - 1 :] != IGNORE_INDEX).all() and sample.labels[
            prompt_length - 2
        ] == IGNORE_INDEX, name
        assert [int(sample.labels[-1])] == encoder.stop_ids, name
        assert prompt.prefix == sample.prefix == (prompt_length - 1 if name == "chatglm" else 0)
        assert encoder.prompt(talk((SYSTEM + TWO)[:-1])).input_ids.tolist() == prompt.input_ids.tolist()


def test_a_template_whose_special_tokens_are_missing_is_an_error(codecs) -> None:
    assert choose_template("chatml", codecs["marked"], None).template is TEMPLATES["chatml"]
    with pytest.raises(UserError, match=r"--chat_template chatml: the tokenizer .* lacks <\|im_end\|>, <\|im_start\|>"):
        choose_template("chatml", codecs["llama"], None)
    with pytest.raises(UserError, match="--chat_template lama2: not a file and not one of auto, default, llama2"):
        choose_template("lama2", codecs["llama"], None)


def test_a_folder_without_a_template_uses_default(codecs, tmp_path: Path) -> None:
    chosen = choose_template(None, codecs["llama"], str(tmp_path))
    assert chosen.template is TEMPLATES["default"] and "no chat template" in chosen.why
    with pytest.raises(UserError, match="has no chat template"):
        choose_template("jinja", codecs["llama"], str(tmp_path))
