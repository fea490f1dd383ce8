"""Scores of generated texts against references: BLEU (sacrebleu), ROUGE (rouge-score), exact match, equal numbers.

A text with a Chinese character counts as Chinese. BLEU is computed over all texts together with one tokenizer: `13a`,
sacrebleu's default, or `zh` if any reference is Chinese, which splits Chinese characters and treats the rest like
`13a`. ROUGE is computed for each text: each Chinese character (and each kana) is a word, and so is each sequence of
other letters and digits, in lower case. For ASCII texts these are the words of rouge-score without stemming.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from paddle_llm.config.run_config import SCORES

_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_HAS_CHINESE = re.compile(f"[{_CHINESE}]")
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d+(?:,\d{3})*(?!\d)(?:\.\d+)?|\.\d+)", re.ASCII)
_RESULT = "####"  # precedes the result in answers of GSM8K (Cobbe et al. 2021)
_WORDS = re.compile(f"[{_CHINESE}\u3040-\u30ff]|[^\\W_{_CHINESE}\u3040-\u30ff]+")


def is_chinese(text: str) -> bool:
    """Return whether a text contains a Chinese character."""
    return _HAS_CHINESE.search(text) is not None


class CharacterTokenizer:
    """A tokenizer with the interface of rouge-score: words in lower case, Chinese by character."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words."""
        return _WORDS.findall(text.lower())


def score(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute the scores named in `SCORES`, each on the scale of its library. Surrounding blanks are ignored.

    Args:
        generated: Generated texts.
        references: Reference of each text.

    Returns:
        bleu: 0 to 100 (Papineni et al. 2002, over all texts; 0 if no four consecutive words match in any text);
        rouge1, rouge2, rougeL: mean F-measure, 0 to 1 (Lin 2004); exact_match: share, 0 to 1. Empty without texts.
    """
    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} generated texts, {len(references)} references")
    if not generated:
        return {}
    pairs = [(text.strip(), reference.strip()) for text, reference in zip(generated, references, strict=True)]
    found = {"bleu": _bleu(pairs), **_rouge(pairs), "exact_match": sum(a == b for a, b in pairs) / len(pairs)}
    return {name: found[name] for name in SCORES}


def numeric_accuracy(generated: Sequence[str], references: Sequence[str]) -> tuple[float | None, int]:
    """Compare the numbers that texts end with, as in the evaluation of GSM8K (Cobbe et al. 2021).

    Args:
        generated: Generated texts.
        references: Reference of each text.

    Returns:
        Share of the texts whose `final_number` equals that of their reference, 0 to 1, None without such a reference; and
        the number of references that have one. The other texts do not count.
    """
    pairs = [
        (final_number(text), expected)
        for text, reference in zip(generated, references, strict=True)
        if (expected := final_number(reference)) is not None
    ]
    return (sum(found == expected for found, expected in pairs) / len(pairs) if pairs else None), len(pairs)


def final_number(text: str) -> Decimal | None:
    """Return the first number after the last `####`, or else the last number of a text; None if there is none.

    Commas between digits, units and currency signs are ignored: `$1,200.50.` is 1200.5.
    """
    _, marked, result = text.rpartition(_RESULT)
    found = _NUMBER.findall(result)
    if not found:
        return None
    return Decimal((found[0] if marked else found[-1]).replace(",", ""))


def _bleu(pairs: list[tuple[str, str]]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    chinese = any(is_chinese(reference) for _, reference in pairs)
    metric = BLEU(tokenize="zh" if chinese else "13a")
    return float(metric.corpus_score([text for text, _ in pairs], [[reference for _, reference in pairs]]).score)


def _rouge(pairs: list[tuple[str, str]]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    names = [name for name in SCORES if name.startswith("rouge")]
    scorer = RougeScorer(names, tokenizer=CharacterTokenizer())
    found: list[dict[str, Any]] = [scorer.score(reference, text) for text, reference in pairs]
    return {name: sum(one[name].fmeasure for one in found) / len(found) for name in names}
