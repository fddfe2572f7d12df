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
    HYPER_CONNECTIONS = "hyper-connections"
    RESIDUAL_NORMS = "norms inside the residual stream"
    TOKEN_ROUTING = "routing by token"
    MIXTURE_BIAS = "a bias on the mixture"
    LATENT_EXPERTS = "experts in a narrower space"
    CLAMPED_SWIGLU = "the clamped SwiGLU activation"
    # evidence
    NO_WEIGHTS = "any released weights"
