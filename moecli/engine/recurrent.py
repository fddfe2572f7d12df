"""Mixers that keep a state: a convolution over the last tokens, a recurrence, and a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.engine.layers import rms_norm
from moecli.engine.states import RecurrentCache
from moecli.engine.weights import LayerWeights
from moecli.kernels import recurrent
from moecli.kernels.blocking import STATE_STEP
from moecli.kernels.linear import linear
from moecli.kernels.recurrent import NativeMixer, Past
from moecli.model.spec import Recurrent, RecurrentKind

_PREFIX = "mixer_"
_ROWS = 16  # tokens that meet all others at once where each row of a state decays by itself


class RecurrentMixer:
    """x -> input projections -> mixed natively, or by the functions below -> output projection."""

    def __init__(self, spec: Recurrent, weights: LayerWeights) -> None:
        self._spec, self._weights = spec, weights
        self._small, norm = small_weights(weights), weights["attn_norm"]
        self._native = NativeMixer(spec, self._small, norm.dtype) if recurrent.serves(norm) else None

    def __call__(self, x: Tensor, cache: RecurrentCache) -> Tensor:
        """x [T, D] -> [T, D]; the tokens become part of the state, which is kept at the last of its steps."""
        w = self._weights
        projected = linear(x, w.matrix("mixer_in"), w.get("mixer_in_bias"))
        gates = linear(x, w["mixer_gates"]) if "mixer_gates" in w else None
        mixed = x.new_empty(len(x), self._spec.inner)
        start, end = cache.length, cache.length + len(x)
        cuts = [start, *range((start // STATE_STEP + 1) * STATE_STEP, end, STATE_STEP), end]
        for first, last in pairwise(cuts):
            part = slice(first - start, last - start)
            mixed[part] = self._mix(projected[part].float(), None if gates is None else gates[part].float(), cache)
            if last == end // STATE_STEP * STATE_STEP:
                cache.snapshot()
        return linear(mixed, w.matrix("mixer_out"), w.get("mixer_out_bias"))

    def _mix(self, projected: Tensor, gates: Tensor | None, cache: RecurrentCache) -> Tensor:
        """At most STATE_STEP tokens."""
        kept = cache.extend(len(projected), commits=True)
        if self._native is not None:
            return self._native(projected, gates, Past(cache.rows, cache.state, cache.record, kept, commits=True))
        assert not kept, "only native steps leave tokens behind"
        return _RECURRENCES[self._spec.kind](self._spec, self._small, projected, gates, cache)


def small_weights(weights: LayerWeights) -> dict[str, Tensor]:
    """All of a mixer but its two large projections, by their role without the prefix."""
    roles = (
        "conv", "conv_bias", "decay", "step_bias", "skip", "norm", "step_norm", "write_norm", "read_norm", "gates",
        "select", "step", "gate", "in_bias", "out_bias",
    )  # fmt: skip
    return {role: weights[_PREFIX + role] for role in roles if _PREFIX + role in weights}


def _delta_net(
    spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, gates: Tensor | None, cache: RecurrentCache
) -> Tensor:
    """Gated delta net (arXiv 2412.06464): one decay for a head."""
    assert gates is not None
    mapped, z = x.split((spec.channels, spec.inner), -1)
    rate, step = gates.chunk(2, -1)
    decay = recurrent.decay_rates(spec, w["decay"]) * F.softplus(step + w["step_bias"])
    mixed = _correct(spec, _convolve(spec, w, mapped, cache), decay[..., None], rate, cache)
    return (rms_norm(mixed, w["norm"], spec.norm_eps) * F.silu(z.unflatten(-1, (spec.heads, -1)))).flatten(1)


def _channel_delta(
    spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, gates: Tensor | None, cache: RecurrentCache
) -> Tensor:
    """Kimi Delta Attention (arXiv 2510.26692): a decay of each row of a head's state; it and the gate are narrow."""
    assert gates is not None
    if spec.rank:
        mapped, (rate, *low) = x, gates.split((spec.heads, spec.rank, spec.rank), -1)
        step, z = (
            linear(each.to(w[role].dtype), w[role]).float() for role, each in zip(("step", "gate"), low, strict=True)
        )
    else:
        rate, (mapped, step, z) = gates, x.split((spec.channels, spec.heads * spec.state_dim, spec.inner), -1)
    steps = (step + w["step_bias"]).unflatten(-1, (spec.heads, -1))
    rates = recurrent.decay_rates(spec, w["decay"])[:, None]
    decay = spec.floor * (-rates * steps).sigmoid() if spec.floor else rates * F.softplus(steps)
    mixed = _correct(spec, _convolve(spec, w, mapped, cache), decay, rate, cache)
    opened: Tensor = rms_norm(mixed, w["norm"], spec.norm_eps) * z.unflatten(-1, (spec.heads, -1)).sigmoid()
    return opened.flatten(1)


def _correct(spec: Recurrent, mapped: Tensor, decay: Tensor, rate: Tensor, cache: RecurrentCache) -> Tensor:
    """The delta rule in its chunked form: what tokens correct is one triangular system. [T, H, v]

    `mapped` [T, channels] are queries, keys and values; `decay` is [T, H, 1], or [T, H, k] where each row has its own.
    """
    shared = spec.groups * spec.state_dim
    q, k, v = F.silu(mapped).split((shared, shared, spec.inner), -1)
    q, k = (_unit(_by_head(spec, each)) for each in (q, k))
    beta = rate.sigmoid()[..., None]  # [T, H, 1]
    state, total = _state(spec, cache), decay.cumsum(0)
    known = torch.einsum("thk,hkv->thv", k * total.exp(), state)
    written = torch.linalg.solve_triangular(
        _similar(k * beta, k, total).tril(-1),
        ((v.unflatten(-1, (spec.heads, -1)) - known) * beta).transpose(0, 1),
        upper=False,
        unitriangular=True,
    )
    return _read(q * spec.state_dim**-0.5, k, written, total, state, cache)


def _mamba2(spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, gates: Tensor | None, cache: RecurrentCache) -> Tensor:
    """Mamba-2 (arXiv 2405.21060), chunked alike: one decay per head, maps shared within groups."""
    z, mapped, step = x.split((spec.inner, spec.channels, spec.heads), -1)
    shared = spec.groups * spec.state_dim
    v, write, read = F.silu(_convolve(spec, w, mapped, cache)).split((spec.inner, shared, shared), -1)
    v = v.unflatten(-1, (spec.heads, -1))
    step = F.softplus(step + w["step_bias"])
    total = (recurrent.decay_rates(spec, w["decay"]) * step).cumsum(0)[..., None]
    written = (v * step[..., None]).transpose(0, 1)
    write, read = (_by_head(spec, each) for each in (write, read))
    mixed = _read(read, write, written, total, _state(spec, cache), cache)
    mixed = (mixed + v * w["skip"][:, None]).flatten(1) * F.silu(z)
    return rms_norm(mixed.unflatten(-1, (spec.groups, -1)), None, spec.norm_eps).flatten(1) * w["norm"]


def _lightning(
    spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, gates: Tensor | None, cache: RecurrentCache
) -> Tensor:
    """Lightning attention (arXiv 2401.04658): one decay per head, the same for every token."""
    mapped, z = x.split((spec.channels, spec.inner), -1)
    q, k, v = (each.unflatten(-1, (spec.heads, -1)) for each in F.silu(mapped).chunk(3, -1))
    total = recurrent.slopes(spec).to(x.device).expand(len(x), -1).cumsum(0)[..., None]
    mixed = _read(q, k, v.transpose(0, 1), total, _state(spec, cache), cache).flatten(1)
    return rms_norm(mixed, w["norm"], spec.norm_eps).mul_(z.sigmoid())


def _mamba(spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, gates: Tensor | None, cache: RecurrentCache) -> Tensor:
    """Mamba (arXiv 2312.00752) with norms on step and maps: a decay for each channel and row, so token by token."""
    mapped, z = x.chunk(2, -1)
    v = F.silu(_convolve(spec, w, mapped, cache))
    selected = linear(v.to(w["select"].dtype), w["select"]).float()
    step, write, read = selected.split((spec.rank, spec.state_dim, spec.state_dim), -1)
    step = rms_norm(step, w["step_norm"], spec.norm_eps).to(w["step"].dtype)
    steps = F.softplus(linear(step, w["step"]).float() + w["step_bias"])
    write, read = (
        rms_norm(each, w[f"{name}_norm"], spec.norm_eps) for name, each in (("write", write), ("read", read))
    )
    rates = -w["decay"].exp()
    state = cache.state.transpose(1, 2).flatten(0, 1)[: spec.inner]  # [inner, state_dim]
    mixed = torch.empty_like(v)
    for token in range(len(x)):
        state = state * (rates * steps[token, :, None]).exp() + (steps[token] * v[token])[:, None] * write[token]
        mixed[token] = state @ read[token] + w["skip"] * v[token]
    held = F.pad(state, (0, 0, 0, -spec.inner % cache.state.shape[-1]))
    cache.state.copy_(held.unflatten(0, (-1, cache.state.shape[-1])).transpose(1, 2))
    return mixed * F.silu(z)


def _short_convolution(
    spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, gates: Tensor | None, cache: RecurrentCache
) -> Tensor:
    """A convolution of what one gate lets in, another lets out (LFM2)."""
    let_in, let_out, value = x.chunk(3, -1)
    return _convolve(spec, w, let_in * value, cache) * let_out


_RECURRENCES: dict[
    RecurrentKind, Callable[[Recurrent, Mapping[str, Tensor], Tensor, Tensor | None, RecurrentCache], Tensor]
] = {
    RecurrentKind.DELTA_NET: _delta_net,
    RecurrentKind.CHANNEL_DELTA: _channel_delta,
    RecurrentKind.SHORT_CONVOLUTION: _short_convolution,
    RecurrentKind.MAMBA: _mamba,
    RecurrentKind.MAMBA2: _mamba2,
    RecurrentKind.LIGHTNING: _lightning,
}


def _convolve(spec: Recurrent, w: Mapping[str, Tensor], x: Tensor, cache: RecurrentCache) -> Tensor:
    """Each channel of x [T, C] over its last `kernel` tokens."""
    past = spec.kernel - 1
    seen, weights = torch.cat((cache.rows[:past], x)), w["conv"]  # [C, 1, kernel]
    cache.rows[:past] = seen[len(x) :]
    out = torch.zeros_like(x) if "conv_bias" not in w else w["conv_bias"].expand_as(x).clone()
    for place in range(spec.kernel):
        out.addcmul_(seen[place : place + len(x)], weights[:, 0, place])
    return out


def _by_head(spec: Recurrent, x: Tensor) -> Tensor:
    """[T, groups * state_dim] -> [T, H, state_dim]: heads of a group share it."""
    shared: Tensor = x.unflatten(-1, (spec.groups, -1))
    return shared.repeat_interleave(spec.heads // spec.groups, 1)


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def _similar(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """What queries [T, H, k] find at token t of what keys wrote at tokens s <= t, [H, T, T].

    `total`: the decays' sums [T, H, 1], or [T, H, k] where each row has its own.
    """
    if total.shape[-1] == 1:
        return torch.einsum("thk,shk->hts", q, k) * _decays(total, slice(None)).squeeze(-1).permute(2, 0, 1)
    cuts = (slice(start, start + _ROWS) for start in range(0, len(q), _ROWS))
    return torch.cat([_decays(total, some).mul_(q[some, None]).mul_(k).sum(-1) for some in cuts]).permute(2, 0, 1)


def _decays(total: Tensor, some: slice) -> Tensor:
    """What is left at `some` tokens t of what token s <= t wrote, [t, T, H, 1 or k]; `total`: as above."""
    places = torch.arange(len(total), device=total.device)
    later = places > places[some, None]
    return (total[some, None] - total).masked_fill_(later[..., None, None], -torch.inf).exp_()


def _state(spec: Recurrent, cache: RecurrentCache) -> Tensor:
    """[H, state_dim, head_dim]"""
    tiles: Tensor = cache.state.unflatten(0, (spec.heads, -1))
    return tiles.transpose(1, 2).flatten(2)[..., : spec.head_dim]


def _read(q: Tensor, k: Tensor, written: Tensor, total: Tensor, state: Tensor, cache: RecurrentCache) -> Tensor:
    """What queries [T, H, k] read of the state and of what was written [H, T, v] since: [T, H, v]. The state is new."""
    before = torch.einsum("thk,hkv->thv", q * total.exp(), state)
    mixed = before + (_similar(q, k, total) @ written).transpose(0, 1)
    left = k * (total[-1] - total).exp()
    state = state * total[-1].exp()[..., None] + torch.einsum("thk,htv->hkv", left, written)
    tile = cache.state.shape[-1]
    padded = F.pad(state, (0, -state.shape[-1] % tile))
    cache.state.copy_(padded.unflatten(-1, (-1, tile)).transpose(1, 2).flatten(0, 1))
    return mixed
