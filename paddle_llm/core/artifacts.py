"""Names of the files and folders that runs, checkpoints, adapters and exports consist of, and constants that data and models share."""

from __future__ import annotations

# ---- output folder of a run
RESOLVED_CONFIG = "config.resolved.json"
METRICS = "metrics.jsonl"
ROLLBACKS = "rollbacks.json"
CURVES_FOLDER = "visualdl"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"

# ---- checkpoint
MANIFEST = "manifest.json"
CHECKPOINT_INDEX = "index.json"
TRAINER_STATE = "trainer_state.json"
TRAINING_ARGS = "training_args.bin"
METER_STATE = "meter.json"

# ---- model folder
MODEL_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX_SUFFIX = ".index.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = SAFETENSORS + INDEX_SUFFIX
PDPARAMS = "model_state.pdparams"
PDPARAMS_INDEX = PDPARAMS + INDEX_SUFFIX
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = TORCH_WEIGHTS + INDEX_SUFFIX

# ---- tokenizer
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE_MODEL = "tokenizer.model"  # Hugging Face's name; PaddleNLP's is sentencepiece.bpe.model
PADDLENLP_SENTENCEPIECE_MODEL = "sentencepiece.bpe.model"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
VOCAB_JSON = "vocab.json"
MERGES = "merges.txt"

# ---- chat templates
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES_FOLDER = "additional_chat_templates"
PROCESSOR_CHAT_TEMPLATE = "chat_template.json"
CHAT_TEMPLATE_RECORD = "training_chat_template.json"  # name and digest of the template that the model was trained with

# ---- adapter
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_SAFETENSORS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

# ---- export
EXPORT_RECORD = "export.json"  # what was exported, and the results of its verification
STATIC_STEP = "step.json"  # inputs and outputs of a static program; its presence marks a static export
STATIC_PROGRAM = "model.json"
STATIC_WEIGHTS = "model.pdiparams"
GGUF = "model.gguf"  # the only file with weights, tokenizer and chat template of an export for llama.cpp

# ---- shared by data and models
IGNORE_INDEX = -100  # label of a position without loss
