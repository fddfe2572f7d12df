"""What the engine lacks for a family that is read and counted, but not run."""

from __future__ import annotations

from enum import Enum


class Unsupported(Enum):
    """One thing that stands between a model and running it; the value is how a screen names it, after "lacks"."""

    # mathematics
    INDEXER = "sparse attention with an indexer"
    COMPRESSED_ATTENTION = "compressed attention"
    LINEAR_ATTENTION = "linear attention"
    CROSS_LAYER_ATTENTION = "attention over earlier layers"
    ATTENTION_EXPERTS = "attention heads as experts"
    ATTENTION_SINKS = "attention sinks"
    ATTENTION_GATE = "a gate on the attention's output"
    NO_POSITIONS = "layers without positions"
    STATE_SPACE = "state-space layers"
    HALF_BLOCKS = "blocks of one half"
    HYPER_CONNECTIONS = "hyper-connections"
    RESIDUAL_NORMS = "norms inside the residual stream"
    ZERO_CENTRED_NORMS = "zero-centred norms"
    TOKEN_ROUTING = "routing by token"
    MIXTURE_BIAS = "a bias on the mixture"
    EXPERT_BIAS = "experts with biases"
    UNGATED_EXPERTS = "experts with two matrices"
    LATENT_EXPERTS = "experts in a narrower space"
    CLAMPED_SWIGLU = "the clamped SwiGLU activation"
    # evidence
    NO_WEIGHTS = "any released weights"
