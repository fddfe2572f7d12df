"""The hybrid path in two memories: numbers of one device never meet the other's, and every wait is needed.

The device does its work late and in streams (`tests/support/far_device.py`), with the copies of a real card.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moecli.engine.decoder import Decoder
from moecli.engine.weights import store_weights
from moecli.experts.copies import StreamCopies
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.experts.rates import Pace, Rates
from moecli.store.packed import PackedStore
from tests.support.checkpoints import prompt
from tests.support.far_device import FAR, far_device
from tests.support.running import greedy, score
from tests.support.stores import Stores, decoder
from tests.support.streams import Streams

IDS = prompt(40)
QUICK, SLOW = Pace(1e15, 0.0), Pace(1.0, 1.0)
RATES = {"copied": Rates(1e15, SLOW, QUICK), "stay": Rates(1.0, QUICK, SLOW), "both": Rates(1e9, Pace(1e9, 0.0), QUICK)}


def far_decoder(store: PackedStore, rates: Rates, on_device: int = 2, in_ram: int = 4, policy: str = "lru") -> Decoder:
    dense = store_weights(store, FAR)
    capacity = Capacity(FAR, dense.dtype, on_device, in_ram)
    experts = GpuOffloadedExperts(
        store.spec, store.layout.records, capacity, policy, store=store, rates=rates, copies=StreamCopies
    )
    return Decoder(store.spec, dense, experts, 256)
