"""Tokenizers that transformers reads with its models' own code only (ChatGLM, GLM): their files as the published
repositories have them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from paddle_llm.data.tokenizers.tokenizer_json import TokenizerSource


@dataclass(frozen=True)
class Published:
    """A published tokenizer.

    Attributes:
        files: of the vocabulary; all must be there.
        repository: on the Hugging Face hub, where its code is.
        module, kind: of the code: file and class.
        settings: of tokenizer_config.json.
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
    "ChatGLMTokenizer": Published(
        ("ice_text.model",), "THUDM/chatglm-6b", "tokenization_chatglm", "ChatGLMTokenizer", {**_PLAIN, **_MARKS}
    ),
    "ChatGLMv2Tokenizer": Published(
        (SENTENCEPIECE_MODEL,), "THUDM/chatglm2-6b", "tokenization_chatglm", "ChatGLMTokenizer", _PLAIN
    ),
    "GLMGPT2Tokenizer": Published((VOCAB_JSON, MERGES), "THUDM/glm-10b", "tokenization_glm", "GLMGPT2Tokenizer", {}),
    "GLMChineseTokenizer": Published(
        ("cog-pretrain.model",), "THUDM/glm-10b-chinese", "tokenization_glm", "GLMChineseTokenizer", {}
    ),
}


def write_published(source: TokenizerSource, name: str, staged: Path) -> None:
    """Write the files of PaddleNLP's tokenizer class `name` as transformers' remote code reads them.

    The code itself is copied where it lies beside the tokenizer or the model; else it is said where it is.

    Raises:
        UserError: a file of the vocabulary is missing.
    """
    folder, published = source.tokenizer, PUBLISHED[name]
    assert folder is not None
    given = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    if (
        name == "ChatGLMTokenizer"
        and not (folder / "ice_text.model").is_file()
        and (folder / SENTENCEPIECE_MODEL).is_file()
    ):
        name, published = (
            "ChatGLMv2Tokenizer",
            PUBLISHED["ChatGLMv2Tokenizer"],
        )  # the published name of both is the same
    for file in (*published.files, ADDED_TOKENS, SPECIAL_TOKENS_MAP):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, staged / file)
        elif file in published.files:
            raise UserError(f"tokenizer {folder}: {file} is missing, which {name} reads")
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
    wants = (
        f"{code.name}, which is in the export"
        if code is not None
        else f"copy {published.module}.py of {repository} into the folder"
    )
    say(f"tokenizer: transformers reads {published.kind} with its authors' code only (trust_remote_code=True): {wants}")
