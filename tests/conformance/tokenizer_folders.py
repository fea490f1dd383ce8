"""Small tokenizer folders of all published kinds, and difficult texts for them."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ENGLISH = (
    "The old lamp near the river keeps what a golden mirror hides behind it. Doesn't it? They're 12 of 345 (or 0.5%)!\n"
    "def add(a, b):\n    return a + b  # 0x1F\n\tif x != y: {'k': [1, 2.5]}\r\n"
)
CHINESE = "今天天气很好，我们一起去公园散步。人工智能的发展：大模型训练、推理与部署！繁體中文。こんにちは 안녕하세요 Привет мир\n"
EMOJI = "😀👩‍👩‍👧🇨🇳👍🏽✈️🏴󠁧󠁢󠁥󠁮󠁧󠁿"
COMBINING = "e\u0301 n\u0303o a\u0308\u0304 ｶﾞ ก็ \u1112\u1161\u11ab \u0e33 ﬁ Ａｂｃ ① ½ \u212b"
CONTROL = "\x00\x01\x07\x0b\x0c\x1b\x7f\x85\u00a0\u200b\u200d\u2028\ufeff\ufffd\u2581\u3000 \t\r\n"
SPECIALS = [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "[INST]",
    "<0x41>",
]
QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Config = dict[str, Any]


def hard_texts(number: int, seed: int = 0) -> list[str]:
    """Return texts of English, Chinese, emoji, combining marks, control characters, blanks, and special tokens as text."""
    chance = random.Random(seed)
    sources = [ENGLISH, CHINESE, EMOJI, COMBINING, CONTROL, "  \n\t ", "0123456789--==..", ENGLISH + CHINESE]

    def part() -> str:
        source = chance.choice(sources)
        start = chance.randrange(len(source))
        return source[start : start + chance.randrange(1, 60)]

    def one(turn: int) -> str:
        if turn % 3 == 0:
            source = sources[turn // 3 % len(sources)]
            start = chance.randrange(len(source))
            return source[start : start + chance.randrange(1, 120)]
        if turn % 3 == 1:
            return "".join(part() for _ in range(chance.randrange(1, 5)))
        return "".join(chance.choice([part(), chance.choice(SPECIALS), " "]) for _ in range(chance.randrange(1, 8)))

    fixed = [
        "",
        " ",
        "\n",
        "a",
        " a",
        "a ",
        "</s>",
        " </s> ",
        "</s></s>",
        "lamp</s>",
        "</s>lamp",
        "</s",
        "/s>",
        "< /s>",
    ]
    return (fixed + [one(turn) for turn in range(number)])[:number]


def token(text: str, special: bool = True, **flags: bool) -> Config:
    """Return an entry of added_tokens_decoder."""
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": text, **plain, "special": special, **flags}


def sentencepiece_model(kind: str, **settings: Any) -> bytes:
    """Return a model of 500 pieces: unk, bos, eos, pad, 256 bytes, pieces."""
    model = io.BytesIO()
    options: Config = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH + CHINESE).splitlines() * 30),
        model_writer=model,
        vocab_size=500,
        model_type=kind,
        pad_id=3,
        minloglevel=2,
        hard_vocab_limit=False,
        **{**options, **settings},
    )
    return model.getvalue()


def byte_level(
    cuts: str | None = None, specials: tuple[str, ...] = ("<|endoftext|>", "<|im_end|>"), **more: Any
) -> Tokenizer:
    """Return a byte-level BPE tokenizer of about 400 tokens."""
    made = Tokenizer(models.BPE(**more))
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cuts is None)
    if cuts is not None:
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cuts), "isolated"), levels])
    else:
        made.pre_tokenizer = levels
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(specials),
    )
    made.train_from_iterator((ENGLISH + CHINESE).splitlines() * 10, trainer)
    return made


def like_llama3() -> Tokenizer:
    """Return a tokenizer with special tokens after the vocabulary, BOS by the post-processor, truncation and padding."""
    made = byte_level(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+", specials=(), ignore_merges=True)
    made.normalizer = None
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    begin = processors.TemplateProcessing(
        single=f"{names[0]} $A", pair=f"{names[0]} $A $B", special_tokens=[(names[0], made.token_to_id(names[0]))]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    made.enable_truncation(16)
    made.enable_padding(length=32, pad_id=made.token_to_id(names[1]), pad_token=names[1])
    return made


def like_llama(prepend_scheme: str) -> Tokenizer:
    """Return a sentencepiece-like BPE with bytes, as in tokenizer.json of LLaMA 2 (legacy) and transformers 5 (`first`)."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    words = pre_tokenizers.Metaspace(
        prepend_scheme=prepend_scheme if prepend_scheme != "legacy" else "never", split=False
    )
    letters = sorted(set(ENGLISH + CHINESE + "▁") - set(" \n\t\r"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Trained on words, since merges across a whole line would turn lines into tokens.
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=tokens, initial_alphabet=letters)
    made.train_from_iterator((ENGLISH + CHINESE).splitlines() * 10, trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(content))
    if prepend_scheme == "legacy":
        made.normalizer = normalizers.Sequence(spaces)
        made.pre_tokenizer = None
    else:
        made.pre_tokenizer = words
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def write(folder: Path, config_: Config, files: dict[str, bytes | str | Tokenizer], **json_files: Any) -> Path:
    """Write a folder with tokenizer_config.json (`config_`) and files; json_files: name without .json -> content."""
    folder.mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config_), encoding="utf-8")
    for name, content in files.items():
        if isinstance(content, Tokenizer):
            content.save(str(folder / name))
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content, encoding="utf-8")
    for name, content in json_files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def vocabulary_files(made: Tokenizer) -> dict[str, str]:
    """Return vocab.json and merges.txt of a byte-level tokenizer."""
    model = json.loads(made.to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]) + "\n"
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": merges}


# ---- kinds: name -> function that writes the folder ------------------------------------------------------------------

LLAMA: Config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_IM = {"500": token("<|im_start|>"), "501": token("<|im_end|>")}
SENTENCEPIECE_KINDS: dict[str, tuple[str, Config]] = {
    "bpe": ("bpe", {}),
    "bpe legacy false": ("bpe", {"legacy": False}),
    "bpe legacy true": ("bpe", {"legacy": True, "add_bos_token": False}),
    "bpe no prefix space": ("bpe", {"legacy": False, "add_prefix_space": False}),
    "bpe legacy, no prefix space": ("bpe", {"legacy": True, "add_prefix_space": False}),
    "bpe adds eos": ("bpe", {"add_eos_token": True, "legacy": False}),
    "bpe added tokens": ("bpe", {"added_tokens_decoder": _IM, "eos_token": "<|im_end|>", "pad_token": "</s>"}),
    "bpe not special": ("bpe", {"added_tokens_decoder": {"500": token("<think>", special=False)}, "legacy": False}),
    "bpe stripping": ("bpe", {"added_tokens_decoder": {"500": token("[INST]", lstrip=True, rstrip=True)}}),
    "bpe null": ("bpe", {"bos_token": None, "pad_token": None, "add_bos_token": False}),
    "bpe eos is not a piece": ("bpe", {"eos_token": "<|endoftext|>"}),
    "bpe nmt_nfkc": ("bpe nmt_nfkc", {}),
    "unigram": ("unigram", {}),
    "unigram legacy false": ("unigram", {"legacy": False, "add_prefix_space": False}),
    "unigram added tokens": ("unigram", {"added_tokens_decoder": _IM, "eos_token": "<|im_end|>"}),
    "gemma": ("bpe", {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}),
    "code llama": ("bpe", {"tokenizer_class": "CodeLlamaTokenizer"}),
}
_CHAT: Config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
_META: Config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "model_max_length": 131072}
_BARE = "PreTrainedTokenizerFast"
FAST_KINDS: dict[str, tuple[str, Config]] = {
    "bare": ("llama3", {"tokenizer_class": _BARE, **_META}),
    "bare, more tokens": (
        "llama3",
        {
            "tokenizer_class": _BARE,
            **_META,
            "eos_token": "<|eot_id|>",
            "pad_token": "[PAD]",
            "additional_special_tokens": ["<|im_start|>", {**token("<|im_end|>"), "__type": "AddedToken"}],
        },
    ),
    "gpt2": ("gpt2", {"tokenizer_class": "GPT2Tokenizer", **_CHAT}),
    "gpt2 fast": (
        "gpt2",
        {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True, "eos_token": "<|im_end|>"},
    ),
    "gpt2 clean up": (
        "gpt2",
        {"tokenizer_class": "GPT2Tokenizer", "clean_up_tokenization_spaces": True, "eos_token": "<|endoftext|>"},
    ),
    "neox": ("gpt2", {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<|endoftext|>", "add_bos_token": True}),
    "bloom": ("gpt2", {"tokenizer_class": "BloomTokenizerFast", "eos_token": "<|endoftext|>", "unk_token": None}),
    "qwen2": ("qwen2", {"tokenizer_class": "Qwen2Tokenizer", **_CHAT}),
    "qwen2 fast": (
        "qwen2",
        {
            "tokenizer_class": "Qwen2TokenizerFast",
            **_CHAT,
            "added_tokens_decoder": {"400": token("<think>", special=False), "401": token("<|im_start|>")},
        },
    ),
    "llama legacy": ("llama legacy", {**LLAMA, "tokenizer_class": "LlamaTokenizerFast", "legacy": True}),
    "llama first": ("llama first", {**LLAMA, "legacy": False, "pad_token": "<pad>"}),
    "llama no bos": ("llama first", {**LLAMA, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}),
    "code llama json": ("llama legacy", {**LLAMA, "tokenizer_class": "CodeLlamaTokenizer"}),
    "gemma json": ("llama first", {**LLAMA, "tokenizer_class": "GemmaTokenizer", "pad_token": "<unk>"}),
    "cohere": ("gpt2", {"tokenizer_class": "CohereTokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
}
# Folders that AutoTokenizer of transformers 4.55 rejects; the reference is tokenizer.json with the named tokens.
TRANSLATED_KINDS: dict[str, tuple[str, Config]] = {
    "transformers 5 bare": (
        "llama3",
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, **_META},
    ),
    "transformers 5 more tokens": (
        "qwen2",
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_start|>", "<x>"], **_CHAT},
    ),
    "transformers 5 llama": (
        "llama first",
        {**LLAMA, "backend": "tokenizers", "extra_special_tokens": ["<s>", "</s>"], "add_prefix_space": True},
    ),
    "bytes as llama": ("gpt2", {"tokenizer_class": "LlamaTokenizerFast", **_CHAT}),
    "paddlenlp's name": ("qwen2", {"tokenizer_class": "PretrainedTokenizerFast", **_CHAT}),
    "unknown class": ("qwen2", {"tokenizer_class": "SomebodysTokenizer", **_CHAT}),
}
VOCABULARY_KINDS: dict[str, Config] = {
    "gpt2 files": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **_CHAT, "bos_token": "<|endoftext|>"},
    "gpt2 files, prefix space": {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": True,
        "eos_token": "<|im_end|>",
    },
    "qwen2 files": {
        "tokenizer_class": "Qwen2Tokenizer",
        **_CHAT,
        "added_tokens_decoder": {"400": token("<think>", special=False), "401": token("<|im_start|>")},
    },
}


def jsons() -> dict[str, Tokenizer]:
    """Return contents of tokenizer.json by name."""
    return {
        "llama3": like_llama3(),
        "gpt2": byte_level(),
        "qwen2": byte_level(QWEN2_CUTS),
        "llama legacy": like_llama("legacy"),
        "llama first": like_llama("first"),
    }


def write_all(root: Path) -> dict[str, Path]:
    """Write all folders; return them by the name of their kind."""
    models_of: dict[str, bytes] = {
        "bpe": sentencepiece_model("bpe"),
        "unigram": sentencepiece_model("unigram"),
        "bpe nmt_nfkc": sentencepiece_model("bpe", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True),
    }
    fast = jsons()
    made: dict[str, Path] = {}
    for name, (model, config) in SENTENCEPIECE_KINDS.items():
        made[name] = write(root / name, {**LLAMA, **config}, {"tokenizer.model": models_of[model]})
    made["bpe map file"] = write(
        root / "bpe map file",
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer.model": models_of["bpe"]},
        special_tokens_map={"eos_token": "<|im_end|>", "bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        added_tokens={"<|im_end|>": 500},
    )
    made["bpe map file wins"] = write(
        root / "bpe map file wins",
        LLAMA,
        {"tokenizer.model": models_of["bpe"]},
        special_tokens_map={"eos_token": "<|im_end|>"},
    )
    for name, (content, config) in [*FAST_KINDS.items(), *TRANSLATED_KINDS.items()]:
        made[name] = write(root / name, config, {"tokenizer.json": fast[content]})
    made["tiktoken beside"] = write(
        root / "tiktoken beside",
        {"tokenizer_class": _BARE, **_META},
        {"tokenizer.json": fast["llama3"], "tokenizer.model": "IQ== 0\nIg== 1\n"},
    )
    for name, config in VOCABULARY_KINDS.items():
        content = fast["qwen2" if "qwen2" in name else "gpt2"]
        made[name] = write(root / name, config, vocabulary_files(content))
    made["no class"] = write(
        root / "no class",
        {"eos_token": "<|im_end|>"},
        {"tokenizer.json": fast["qwen2"]},
        config={"model_type": "qwen2"},
    )
    return made


def saved_by_transformers(folder: Path, out: Path, load: Callable[[str], Any]) -> Path:
    """Write the folder as by save_pretrained of transformers."""
    load(str(folder)).save_pretrained(str(out))
    return out


def with_paddles_name(folder: Path, out: Path) -> Path:
    """Write the folder with PaddleNLP's name of the sentencepiece model."""
    shutil.copytree(folder, out)
    (out / "tokenizer.model").rename(out / "sentencepiece.bpe.model")
    return out
