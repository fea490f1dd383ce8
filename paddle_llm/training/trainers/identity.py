"""What a resumed run and its checkpoint must have in common: the network, the base model, the samples."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.checkpoint.training_state.local_weights import local_weights
from paddle_llm.checkpoint.training_state.writers import gather_objects
from paddle_llm.config.layout import Layout
from paddle_llm.data.identity import FIRST_SAMPLES, DataIdentity, digest_of
from paddle_llm.models.weights.vocabulary import real_vocab_size
from paddle_llm.parallel.mesh import current_mesh

if TYPE_CHECKING:
    import paddle

    from paddle_llm.models.protocols import LanguageModel

_FIRST_SAMPLES = 8
_FIRST_VALUES = 4  # of a weight; in every layout the first tensor-parallel rank has them
# Keys of the network's configuration that a resumed training must find unchanged.
_NETWORK_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_scaling_type",
    "rope_scaling_factor",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "use_sliding_window",
    "sliding_window",
)


def describe_network(model: LanguageModel, *, padded: bool = False) -> dict[str, Any]:
    """Return the shape of a network, the same in every layout.

    Args:
        model: The network.
        padded: Whether the vocabulary includes padding, as in checkpoints of version 0.2 and earlier.
    """
    config = getattr(model, "config", None)
    found = {key: getattr(config, key, None) for key in _NETWORK_KEYS}
    if config is not None and not padded and found["vocab_size"] is not None:
        found["vocab_size"] = real_vocab_size(config)
    return found


def describe_data(dataset: paddle.io.Dataset, tokenizer: str | None) -> DataIdentity:
    """Return the identity of training data. Of data without one, the first samples are compared.

    Args:
        dataset: Training data in its global order.
        tokenizer: Fingerprint of the tokenizer; None if it is not known.
    """
    provided = getattr(dataset, "identity", None)
    found = None if provided is None else provided()
    if found is None:
        samples = (dataset[i] for i in range(min(_FIRST_SAMPLES, len(dataset))))
        first = [digest_of(*(np.asarray(one[key]) for key in sorted(one))) for one in samples]
        found = DataIdentity({FIRST_SAMPLES: first, "samples per epoch": dataset.samples_per_epoch})
    return found if tokenizer is None else replace(found, parts={**found.parts, "tokenizer": tokenizer})


def describe_old_data(dataset: paddle.io.Dataset) -> dict[str, Any]:
    """Return the digests of the data that checkpoints without an identity of all data have.

    `samples` has one for each of the first samples in their order, `data` is that of version 0.1, which hashed them
    together, and `rows` is the data set's own; None if it has none.
    """
    first = [dataset[i]["input_ids"] for i in range(min(_FIRST_SAMPLES, len(dataset)))]
    contents = [np.ascontiguousarray(ids).tobytes() for ids in first]
    return {
        "data": hashlib.sha256(b"".join(contents)).hexdigest(),
        "samples": [hashlib.sha256(content).hexdigest()[:16] for content in contents],
        "rows": dataset.digest() if hasattr(dataset, "digest") else None,
    }


def digest_of_frozen(model: LanguageModel, layout: Layout) -> str:
    """Return a digest of a few values of each frozen weight, which identifies the base model. Collective over all ranks.

    It is the same in every layout. Called before weights are sharded.

    Args:
        model: Network without fleet's wrapper.
        layout: Layout of the job.
    """
    mesh = current_mesh(layout)
    mine: dict[str, str] = {}
    if mesh.tensor.rank == mesh.data_rank == 0:
        for weight in local_weights(model, layout):
            if not weight.is_trained and weight.parameter._is_initialized():
                first = weight.parameter[0] if weight.parameter.ndim > 1 else weight.parameter
                values = first.flatten()[:_FIRST_VALUES].astype("float32").numpy()
                mine[weight.name] = hashlib.sha256(values.tobytes()).hexdigest()
    everything = {name: digest for one in gather_objects(mine) for name, digest in one.items()}
    return hashlib.sha256(repr(sorted(everything.items())).encode()).hexdigest()


def old_digest_of_frozen(model: LanguageModel) -> str:
    """Return the digest of the frozen weights of the first rank that checkpoints of version 0.2 and earlier contain."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.stop_gradient and parameter._is_initialized():
            first = parameter[0] if parameter.ndim > 1 else parameter
            digest.update(first.astype("float32").numpy().tobytes())
    return digest.hexdigest()
