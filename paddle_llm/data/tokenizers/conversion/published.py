"""Writes the published files of tokenizers that transformers loads only with the code of their models (ChatGLM, GLM)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import (
    ADDED_TOKENS,
    MERGES,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    VOCAB_JSON,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.protocol import TokenizerSource


@dataclass(frozen=True)
class PublishedTokenizer:
    """A published tokenizer.

    Attributes:
        files: Required vocabulary files.
        repository: Repository on the Hugging Face hub that contains the code.
        module: Python file of the code, without suffix.
        kind: Class in that file.
        settings: Settings for tokenizer_config.json.
    """

    files: tuple[str, ...]
    repository: str
    module: str
    kind: str
    settings: dict[str, Any]


_PLAIN = {"remove_space": False, "do_lower_case": False, "padding_side": "left"}
_MARKS = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
PUBLISHED = {
    "ChatGLMTokenizer": PublishedTokenizer(
        ("ice_text.model",), "THUDM/chatglm-6b", "tokenization_chatglm", "ChatGLMTokenizer", {**_PLAIN, **_MARKS}
    ),
    "ChatGLMv2Tokenizer": PublishedTokenizer(
        (SENTENCEPIECE_MODEL,), "THUDM/chatglm2-6b", "tokenization_chatglm", "ChatGLMTokenizer", _PLAIN
    ),
    "GLMGPT2Tokenizer": PublishedTokenizer(
        (VOCAB_JSON, MERGES), "THUDM/glm-10b", "tokenization_glm", "GLMGPT2Tokenizer", {}
    ),
    "GLMChineseTokenizer": PublishedTokenizer(
        ("cog-pretrain.model",), "THUDM/glm-10b-chinese", "tokenization_glm", "GLMChineseTokenizer", {}
    ),
}


def write_published(source: TokenizerSource, name: str, staged: Path) -> None:
    """Write the files of PaddleNLP's tokenizer class `name` in the form that the published code reads.

    The code is copied if it is in the folder of the tokenizer or model; else a message gives its repository.

    Args:
        source: Folders of tokenizer and model.
        name: Class of PaddleNLP.
        staged: Folder to write to.

    Raises:
        UserError: If a vocabulary file is missing.
    """
    folder, published = source.tokenizer, PUBLISHED[name]
    assert folder is not None
    given = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    if (
        name == "ChatGLMTokenizer"
        and not (folder / "ice_text.model").is_file()
        and (folder / SENTENCEPIECE_MODEL).is_file()
    ):
        # Both classes have the same published name.
        name, published = "ChatGLMv2Tokenizer", PUBLISHED["ChatGLMv2Tokenizer"]
    for file in (*published.files, ADDED_TOKENS, SPECIAL_TOKENS_MAP):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, staged / file)
        elif file in published.files:
            raise UserError(f"tokenizer {folder}: {file} is missing, which {name} needs. Copy it into the folder.")
    third = "chatglm3" in (source.template or "") or "chatglm3" in json.dumps(given).lower()
    repository = published.repository.replace("chatglm2", "chatglm3") if third else published.repository
    code = next(
        (f for f in (folder / f"{published.module}.py", source.folder / f"{published.module}.py") if f.is_file()), None
    )
    if code is not None:
        shutil.copyfile(code, staged / code.name)
    kept = {
        key: value for key, value in given.items() if key not in ("auto_map", "name_or_path", "added_tokens_decoder")
    }
    config = {**published.settings, **kept, "init_class": name, "tokenizer_class": published.kind}
    config["auto_map"] = {"AutoTokenizer": [f"{published.module}.{published.kind}", None]}
    (staged / TOKENIZER_CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    remedy = (
        f"the export contains {code.name}"
        if code is not None
        else f"copy {published.module}.py of {repository} into the folder"
    )
    say(
        f"tokenizer: transformers loads {published.kind} only with its authors' code (trust_remote_code=True): {remedy}"
    )
