"""Do all exports of a model say the same? Greedy tokens of 50 prompts x 64 tokens, fp32, by model, target and engine.

    python benchmarks/export_agreement.py [--paddleformers_python DIR/bin/python] > benchmarks/results/export_agreement.md

The models are small and random, with weights so wide that attention looks at something and texts do not settle on one
token: the column of different tokens says so. Each export is what `paddle-llm export` writes, and is compared with the source's tensors in
PaddleNLP's network, without an end of text, so that every prompt counts 64 tokens. Exits with 1 where one token differs.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from paddle_llm.core.errors import UserError  # noqa: E402
from tests.helpers.models.folders import train_pieces, write_folder  # noqa: E402

PROMPTS, NEW_TOKENS = 50, 64
TARGETS = ("hf", "fastdeploy", "static")
_WIDE = {"initializer_range": 0.2}
_SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, **_WIDE}
_LLAMA = {**_SIZES, "intermediate_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 512}
_CHATGLM2 = {**_WIDE, "hidden_size": 128, "num_layers": 4, "num_attention_heads": 8, "seq_length": 512}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaMA, 2 key-value heads of 8": ("llama", {**_LLAMA, "rope_theta": 500000.0}),
    "LLaMA, 2 key-value heads of 8, tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "ChatGLM2": ("chatglm_v2", _CHATGLM2),
    "BLOOM": ("bloom", {**_WIDE, "hidden_size": 256, "n_layer": 4, "n_head": 16}),
}
_CHINESE = (
    "今天天气很好，我们一起去公园散步。",
    "人工智能正在改变世界",
    "深度学习框架需要支持多种并行方式：数据并行、张量并行和流水线并行",
    "请用一句话介绍北京。",
    "模型训练完成以后，",
    "从前有一座山，山上有一座庙，庙里有一个老和尚",
    "中文 and English 混合 2026 年",
    "怎样学好数学？",
    "春眠不觉晓，处处闻啼鸟",
    "一",
)


def texts() -> list[str]:
    """Python's own documentation cut at unequal lengths, and Chinese; the same for every run."""
    random = np.random.RandomState(0)
    lines = [line.strip() for line in "\n".join(pydoc_data.topics.topics.values()).splitlines() if len(line) > 60]
    chosen = random.choice(len(lines), PROMPTS - len(_CHINESE), replace=False)
    return [*(lines[at][: random.randint(4, 60)] for at in chosen), *_CHINESE]


def different_tokens(source: Any) -> float:
    """Of the 64 tokens that the source continues a prompt with: how many different ones there are, on average."""
    from paddle_llm.data.tokenizers.text_codec import open_codec
    from paddle_llm.export.verification.engines.in_paddle import answer_of_source
    from paddle_llm.export.verification.engines.question import Question
    from paddle_llm.generation.prompts import encode_text

    codec = open_codec(str(source.tokenizer))
    prompts = [encode_text(codec, text) for text in texts()]
    question = Question(source.folder, source.family.name, prompts, [], [], NEW_TOKENS)
    answers = answer_of_source(source, question, dict.fromkeys(source.names(), "float32"))
    return float(np.mean([len(set(tokens)) for tokens in answers.tokens]))


def rows(folder: Path, titles: list[str], python: Path | None) -> Iterator[tuple[bool, list[str]]]:
    """(whether it agrees, cells) of each comparison."""
    from paddle_llm.export import export
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.verification.verify import ENGINES, verify

    pieces = train_pieces(folder)
    for title in titles:
        family, sizes = MODELS[title]
        model = write_folder(family, pieces, folder / title, **sizes)
        variety = f"{different_tokens(open_source(model)):.0f}"
        for target in TARGETS:
            out = folder / f"{title} {target}"
            try:
                export(model, target, out, verify=False)
            except UserError as refused:
                yield True, [title, variety, target, "-", "refused: " + " ".join(str(refused).split()), ""]
                continue
            asked = {"prompts": texts(), "new_tokens": NEW_TOKENS, "paddleformers_python": python}
            # PaddleFormers, which has no cache here, reads FastDeploy's folder alone: the weights of both are alike.
            engines = [engine for engine in ENGINES if (target, engine) != ("hf", "paddleformers")]
            for one in verify(open_source(model), out, target, engines=engines, **asked):
                yield one.passed is not False, [title, variety, target, one.engine, *_said(one)]


def _said(one: Any) -> list[str]:
    if one.passed is None:
        return [one.note, ""]
    note = f"; {one.note}" if one.note else ""
    if one.largest_logit_difference is None:
        return [f"{one.what}: {'the same' if one.passed else 'DIFFERENT'}{note}", ""]
    verdict = "" if one.passed else "DIFFERENT: "
    counts = f"{verdict}{one.tokens_equal} of {one.tokens} tokens"
    return [counts + note, f"{one.largest_logit_difference:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paddleformers_python", type=Path)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    asked = parser.parse_args()
    from paddle_llm.generation.network import start_process

    start_process("cpu")
    print(f"# Exports and their source, {date.today()}\n")
    print(describe("paddlepaddle", "paddlenlp", "torch", "transformers") + "\n")
    print(
        f"{PROMPTS} prompts in English and Chinese x {NEW_TOKENS} greedy tokens, fp32. Differences of logits are in standard "
        "deviations of the source's logits over the vocabulary, the largest at any of the tokens.\n"
    )
    print("| model | different tokens of 64 | target | engine | agreement with the source | logits |")
    print("|---|---|---|---|---|---|")
    agree = True
    with tempfile.TemporaryDirectory() as folder:
        for fine, cells in rows(Path(folder), asked.models, asked.paddleformers_python):
            agree &= fine
            print(f"| {' | '.join(cells)} |", flush=True)
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
