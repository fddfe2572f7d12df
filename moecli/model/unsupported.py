"""What the engine lacks for a family that is read and counted, but not run."""

from __future__ import annotations

from enum import Enum


class Unsupported(Enum):
    """One thing that stands between a model and running it; the value is how a screen names it, after "lacks"."""

    # mathematics
    INDEXER = "sparse attention with an indexer"
    COMPRESSED_ATTENTION = "compressed attention"
    CHUNKED_ATTENTION = "attention in chunks"
    LINEAR_ATTENTION = "linear attention"
    CROSS_LAYER_ATTENTION = "attention over earlier layers"
    ATTENTION_EXPERTS = "attention heads as experts"
    ATTENTION_SINKS = "attention sinks"
    ATTENTION_GATE = "a gate on the attention's output"
    GATED_HEADS = "gated attention heads"
    NARROW_VALUES = "values narrower than keys"
    KEYS_AS_VALUES = "keys that serve as values"
    NO_POSITIONS = "layers without positions"
    STATE_SPACE = "state-space layers"
    DENSE_BESIDE_MIXTURE = "a dense block beside the mixture"
    HALF_BLOCKS = "blocks of one half"
    HYPER_CONNECTIONS = "hyper-connections"
    LAYER_SCALE = "a scale on each layer"
    NORM_BIAS = "layer norms with biases"
    RESIDUAL_NORMS = "norms inside the residual stream"
    ZERO_CENTRED_NORMS = "zero-centred norms"
    TOKEN_ROUTING = "routing by token"
    SPARSEMIXER = "sparsemixer routing"
    INPUT_WEIGHTS = "weights on the experts' input"
    MIXTURE_BIAS = "a bias on the mixture"
    UNGATED_EXPERTS = "experts with two matrices"
    LATENT_EXPERTS = "experts in a narrower space"
    CLAMPED_SWIGLU = "the clamped SwiGLU activation"
    LM_HEAD_BIAS = "a biased output head"
    # evidence
    NO_WEIGHTS = "any released weights"
