"""Muon for the hidden matrices and AdamW for everything else."""

from __future__ import annotations

import torch
import torch.distributed as dist
from model import Model
from torch import Tensor


def orthogonal(matrices: Tensor) -> Tensor:
    """Push the singular values of a batch of matrices towards one (five Newton-Schulz steps)."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


def shared_orthogonal(matrices: Tensor) -> Tensor:
    """The same, each worker doing its part of the batch."""
    if not dist.is_initialized():
        return orthogonal(matrices)
    part = slice(dist.get_rank(), None, dist.get_world_size())
    whole = torch.zeros_like(matrices)
    whole[part] = orthogonal(matrices[part])
    dist.all_reduce(whole)
    return whole


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, one batch of matrices per group."""

    def __init__(self, groups: list[list[torch.nn.Parameter]], lr: float, momentum: float = 0.95) -> None:
        super().__init__([{"params": group} for group in groups], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updates = []
            for weight in group["params"]:
                state = self.state[weight]
                if "average" not in state:
                    state["average"] = torch.zeros_like(weight)
                state["average"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["average"], group["momentum"])
                updates.append(update if update.ndim == 3 else update.unsqueeze(0))
            stacked = shared_orthogonal(torch.cat(updates))
            scale = max(1.0, stacked.shape[-2] / stacked.shape[-1]) ** 0.5
            for weight, change in zip(group["params"], stacked.split([len(part) for part in updates]), strict=True):
                weight.add_(change.view_as(weight), alpha=-group["lr"] * scale)


def optimizers(model: Model, muon: bool) -> list[torch.optim.Optimizer]:
    """The optimizers of the model, each with its base learning rate kept in its groups."""
    matrices: dict[str, list[torch.nn.Parameter]] = {}
    rest = []
    for name, weight in model.named_parameters():
        kind = name.split(".")[-2] if name.endswith("weight") else name.split(".")[-1]
        if muon and (kind.endswith("_proj") or kind in ("w1", "w2", "w3")):
            matrices.setdefault(kind, []).append(weight)
        else:
            rest.append(weight)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    ]
    if matrices:
        found.append(Muon(list(matrices.values()), lr=0.02))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return found
