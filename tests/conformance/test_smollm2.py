"""SmolLM2-135M-Instruct, a published model, from end to end, compared with transformers on torch in another process."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.environments import ROOT, smollm2_folder
from tests.helpers.corpus import english_and_chinese
from tests.helpers.pretrain_jobs import rows

pytestmark = [pytest.mark.slow, pytest.mark.hf, pytest.mark.timeout(3600)]
STEP_SECONDS = 1200  # limit of one process
TEXTS, ROWS, WITH_LOGITS = 10_000, 40, 5
NAMES = ("Ann", "Ben", "Chloe", "Dev", "Emeka", "Fatima", "Goran", "Hana")
THINGS = ("apples", "books", "coins", "tickets", "pencils", "stamps")
TOLERANCE = 1e-4

# Arguments: the model's folder, texts.json, conversations.json (messages, labels of the whole conversation), output folder.
_REFERENCE = """
import json, sys
from pathlib import Path
import numpy as np, torch, transformers
assert "paddle" not in sys.modules
folder, texts, conversations, out, with_logits = *map(Path, sys.argv[1:5]), int(sys.argv[5])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
network = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
texts = json.loads(texts.read_text())
marked = tokenizer(texts, add_special_tokens=False)["input_ids"]
split = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
templates, losses = [], []
for number, (messages, row_ids, labels) in enumerate(json.loads(conversations.read_text())):
    templates.append(tokenizer.apply_chat_template(messages))
    with torch.no_grad():
        found = network(torch.tensor([row_ids]), labels=torch.tensor([labels]))
    losses.append(found.loss.item())
    if number < with_logits:
        np.save(out / f"logits_{number}.npy", found.logits[0].numpy())
(out / "reference.json").write_text(json.dumps({"marked": marked, "split": split, "templates": templates, "losses": losses}))
"""


def word_problems(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows in the form of GSM8K: a word problem, its steps, `#### ` and the number."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        name, thing, a, b, c = draw.choice(NAMES), draw.choice(THINGS), *(draw.randint(2, 90) for _ in range(3))
        bought, total = b * c, a + b * c
        made.append(
            {
                "question": f"{name} has {a} {thing} and buys {b} boxes with {c} {thing} each. "
                f"How many {thing} does {name} have now?",
                "answer": f"The boxes hold {b} * {c} = <<{b}*{c}={bought}>>{bought} {thing}.\n"
                f"{name} has {a} + {bought} = <<{a}+{bought}={total}>>{total} {thing} now.\n#### {total}",
            }
        )
    return made


def hard_texts(count: int) -> list[str]:
    """Return texts of English, Chinese, emoji, combining marks, control characters, and special tokens as text."""
    draw = random.Random(1)
    ranges = (
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x300, 0x36F),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0, 0x20),
        (0x2000, 0x2070),
    )
    texts = english_and_chinese(count // 2)
    while len(texts) < count:
        pieces = []
        for _ in range(draw.randint(1, 4)):
            low, high = draw.choice(ranges)
            pieces.append("".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 20))))
        texts.append(draw.choice(("", " ", "\n", "<|im_end|>", "<|im_start|>")).join(pieces))
    return texts


def write_rows(path: Path, found: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def run(*words: Any) -> str:
    """Run Python with `words`, at most STEP_SECONDS; return its standard output."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=STEP_SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return hard_texts(TEXTS)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[tuple[list[dict[str, str]], list[int], list[int]]]:
    """Return (messages, ids, label of each id) of every row with the template of the folder."""
    from paddle_llm.data.chat.selection import choose_template
    from paddle_llm.data.instructions.formats import read_row, recognize
    from paddle_llm.data.samples.encode import InstructionEncoder
    from paddle_llm.data.tokenizers.text_codec import open_codec

    codec = open_codec(str(folder))
    encoder = InstructionEncoder(codec, choose_template(None, codec, str(folder)).template, max_length=1024)
    problems = word_problems(ROWS)
    format_name, found = recognize(problems, "rows"), []
    for row in problems:
        conversation = read_row(row, format_name, "row")
        sample = encoder(conversation)
        ids = [*map(int, sample.input_ids), int(sample.labels[-1])]
        messages = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
        found.append((messages, ids, [-100, *(int(label) if label >= 0 else -100 for label in sample.labels)]))
    return found


@pytest.fixture(scope="module")
def reference(folder, texts, samples, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Return the folder with the logits of transformers, and its ids, template ids and losses."""
    out = tmp_path_factory.mktemp("reference")
    (out / "texts.json").write_text(json.dumps(texts))
    (out / "conversations.json").write_text(json.dumps(samples))
    run("-c", _REFERENCE, folder, out / "texts.json", out / "conversations.json", out, WITH_LOGITS)
    return out, json.loads((out / "reference.json").read_text())


def test_ten_thousand_texts_have_the_same_ids(folder, texts, reference):
    """Compare ids with special tokens recognized (documents) and kept as text (questions and answers)."""
    from paddle_llm.data.tokenizers.text_codec import open_codec

    codec = open_codec(str(folder))
    ways = {"marked": lambda text: codec.encode_with_specials(text, start=False), "split": codec.encode}
    for name, encode in ways.items():
        wanted = reference[1][name]
        different = [text for text, ids in zip(texts, wanted, strict=True) if list(encode(text)) != ids]
        print(f"texts with the same ids ({name}): {len(texts) - len(different)} of {len(texts)}")
        assert different == []
    assert reference[1]["marked"] != reference[1]["split"]  # the texts contain special tokens


def test_the_template_gives_the_same_ids(folder, samples, reference):
    from paddle_llm.data.tokenizers.text_codec import open_codec

    codec = open_codec(str(folder))
    for (_, ids, _), wanted in zip(samples, reference[1]["templates"], strict=True):
        # The template ends with a line feed after the end token, which is not part of a sample.
        assert ids == wanted[: len(ids)] and wanted[len(ids) :] == list(codec.encode("\n"))
    print(f"conversations with the same ids: {len(samples)} of {len(samples)}")


def test_logits_are_the_same(folder, samples, reference):
    import paddle

    from tests.helpers.models.networks import build

    network = build(folder, load=True, length=512)
    network.eval()
    differences = []
    for number, (_, ids, _) in enumerate(samples[:WITH_LOGITS]):
        with paddle.no_grad():
            found = network(input_ids=paddle.to_tensor([ids]))
        ours_SV = (found[0] if isinstance(found, tuple) else found)[0].numpy()
        theirs_SV = np.load(reference[0] / f"logits_{number}.npy")
        assert (ours_SV.argmax(axis=1) == theirs_SV.argmax(axis=1)).all()
        differences.append(float(np.abs(ours_SV - theirs_SV).max() / np.abs(theirs_SV).max()))
    print(f"largest difference of a logit, relative to the largest logit: {max(differences):.2e}")
    assert max(differences) < TOLERANCE


def test_the_evaluation_loss_is_the_same(folder, samples, reference, tmp_path):
    """Compare `--do_eval` of fine-tuning with the loss of transformers, both averaged over the tokens of the answers."""
    write_rows(tmp_path / "rows" / "dev.jsonl", word_problems(ROWS))
    run(
        "finetune_generation.py", "--model_name_or_path", folder, "--dataset_name_or_path", tmp_path / "rows",
        "--output_dir", tmp_path / "output", "--do_eval", "--per_device_eval_batch_size", "4", "--max_length", "1024",
        "--device", "cpu",
    )  # fmt: skip
    (ours,) = [row["eval_loss"] for row in rows(tmp_path / "output") if "eval_loss" in row]
    counts = [sum(label >= 0 for label in labels) for _, _, labels in samples]
    theirs = float(np.average(reference[1]["losses"], weights=counts))
    print(f"evaluation loss of {ROWS} rows ({sum(counts)} tokens): {ours:.6f} here, {theirs:.6f} by transformers")
    assert sum(counts) > 1000 and abs(ours - theirs) < TOLERANCE


def test_a_merged_model_answers_like_base_and_adapter(folder, tmp_path):
    write_rows(tmp_path / "rows" / "train.jsonl", word_problems(16))
    questions = [{"question": row["question"]} for row in word_problems(4, seed=1)]
    asked = write_rows(tmp_path / "questions.jsonl", questions)
    out = tmp_path / "tuned"
    run(
        "finetune_generation.py", "--model_name_or_path", folder, "--dataset_name_or_path", tmp_path / "rows",
        "--output_dir", out, "--lora", "--merge_weights", "--do_train", "--max_steps", "4",
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--max_length", "256",
        "--learning_rate", "1e-3", "--device", "cpu",
    )  # fmt: skip
    models = {"merged": [out / "model"], "adapter": [folder, "--adapter", out / "adapter"], "base": [folder]}
    answers = {}
    for name, words in models.items():
        file = tmp_path / f"{name}.jsonl"
        run("-m", "paddle_llm.cli", "generate", *words, "--input", asked, "--output", file, "--max_new_tokens", "24")
        answers[name] = [json.loads(line)["generated"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert answers["merged"] == answers["adapter"] != answers["base"]
    print(
        f"answers equal: {len(questions)} of {len(questions)}; the base answers otherwise: {answers['base'] != answers['merged']}"
    )
    assert (out / "model" / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()
