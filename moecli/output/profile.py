"""The table that MOECLI_PROFILE asks for: milliseconds per token by part, and by layer for decoding."""

from __future__ import annotations

from moecli.engine.profile import PARTS, Phase, Profile

_APART = "decode steps went sublayer by sublayer to be timed; unprofiled, each is a single native call and quicker"


def table(profile: Profile) -> str:
    """Both phases side by side, then each layer of decode steps; lines for stderr."""
    phases = profile.prefill, profile.decode
    lines = [f"{'':<10}{'prefill':>18}{'decode':>18}", f"{'':<10}" + f"{'ms/token':>11}{'share':>7}" * 2]
    for part in PARTS:
        lines.append(f"{part:<10}" + "".join(_cell(phase, phase.part(part)) for phase in phases))
    rest = (phase.seconds - sum(map(phase.part, PARTS)) for phase in phases)
    lines.append(f"{'other':<10}" + "".join(_cell(phase, seconds) for phase, seconds in zip(phases, rest, strict=True)))
    lines.append(f"{'all':<10}" + "".join(_cell(phase, phase.seconds) for phase in phases))
    if profile.decode.tokens:
        lines.append(f"{'layer':<10}" + "".join(f"{part:>11}" for part in PARTS) + "  (decode, ms/token)")
        for layer in sorted({layer for layer, _ in profile.decode.parts}):
            cells = (profile.decode.parts[layer, part] / profile.decode.tokens for part in PARTS)
            lines.append(f"{layer:<10}" + "".join(f"{1000 * cell:>11.3f}" for cell in cells))
        if profile.apart:
            lines.append(_APART)
    return "\n".join(lines)


def _cell(phase: Phase, seconds: float) -> str:
    if not phase.tokens:
        return f"{'-':>11}{'-':>7}"
    return f"{1000 * seconds / phase.tokens:>11.3f}{100 * seconds / phase.seconds:>5.0f} %"
