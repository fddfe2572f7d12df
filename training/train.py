"""Train the model until a given time of day, saving checkpoints from which a restart continues."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Generator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from evaluate import load
from model import Config, Model
from optimizer import optimizers
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

SHARES = {"english": 0.30, "code": 0.20, "french": 0.125, "german": 0.125, "spanish": 0.125, "italian": 0.125}
LONG_FROM, DECAY_FROM, WARM_UP = 0.7, 0.45, 100
BALANCE, Z_LOSS = 0.015, 0.001
MICRO_BATCH = 4096


class Stream:
    """Windows of one domain's tokens that start at a line or a document, in a new random order each epoch."""

    def __init__(self, path: Path, line_ends: Tensor, seed: int) -> None:
        self.ids = torch.from_numpy(np.load(path).astype(np.int32))
        self.starts = (torch.isin(self.ids[:-1], line_ends)).nonzero().flatten() + 1
        self.random = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def window(self, length: int) -> Tensor:
        """<s> and the next `length` tokens."""
        if not self.queue:
            offset = int(torch.randint(512, (1,), generator=self.random))
            grid = torch.arange(offset, len(self.ids) - 2048, 384)
            starts = self.starts[torch.searchsorted(self.starts, grid).clamp(max=len(self.starts) - 2)]
            self.queue = starts[torch.randperm(len(starts), generator=self.random)].tolist()
        start = min(self.queue.pop(), len(self.ids) - length)
        begin = 1 if self.ids[start] == 0 else 0
        return torch.cat((torch.zeros(1, dtype=torch.int32), self.ids[start + begin : start + begin + length]))


def batches(cache: Path, tokens: int, seed: int) -> Generator[Tensor, int, None]:
    """Endless batches of about `tokens` tokens; send the window length to get the next one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    ends = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]).endswith("\n")]
    line_ends = torch.tensor([1, *ends], dtype=torch.int32)
    streams = {name: Stream(cache / "tokens" / f"{name}.npy", line_ends, seed) for name in SHARES}
    names, shares = list(SHARES), np.array(list(SHARES.values()))
    chance = np.random.default_rng(seed)
    length = yield torch.empty(0)
    while True:
        picked = chance.choice(len(names), tokens // length, p=shares / shares.sum())
        rows = [streams[names[i]].window(length) for i in picked]
        rows = [F.pad(row, (0, length + 1 - len(row))) for row in rows]
        length = yield torch.stack(rows).long()


def rate(step: int, progress: float) -> float:
    """Share of the base learning rate: warm-up by steps, constant, linear decay by the clock."""
    decay = min(1.0, (1 - progress) / (1 - DECAY_FROM))
    return max(0.0, min(1.0, (step + 1) / WARM_UP) * decay)


@torch.compile(dynamic=False)
def entropy_and_slope(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of some rows and its gradient at the logits."""
    wide = logits.float()
    total = wide.logsumexp(-1, keepdim=True)
    hit = torch.arange(wide.shape[-1]) == wanted
    slope = (wide - total).exp() - hit.float()
    return (total - wide.gather(1, wanted)).sum(), slope.to(logits.dtype)


class CrossEntropy(torch.autograd.Function):
    """Mean cross entropy of a linear head in slices, gradients included, so that no big logits are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        narrow = weight.bfloat16()
        total, x_grad, weight_grad = torch.zeros(()), torch.empty_like(x), torch.zeros_like(weight)
        for start in range(0, len(x), 256):
            rows = x[start : start + 256]
            part, slope = entropy_and_slope(rows @ narrow.T, targets[start : start + 256, None])
            total += part
            x_grad[start : start + 256] = slope @ narrow
            weight_grad += slope.T @ rows
        ctx.save_for_backward(x_grad, weight_grad)
        ctx.count = len(x)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x_grad, weight_grad = ctx.saved_tensors
        return x_grad * (gradient / ctx.count), weight_grad * (gradient / ctx.count), None


def loss_parts(model: Model, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy, load-balancing loss and router z-loss of one batch."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, all_logits, all_chosen = model.hidden(batch[:, :-1])
    targets = batch[:, 1:].flatten()
    entropy = CrossEntropy.apply(x.flatten(0, 1), model.embed_tokens.weight, targets)  # type: ignore[no-untyped-call]
    balance = z_loss = torch.zeros(())
    for router, chosen in zip(all_logits, all_chosen, strict=True):
        count = router.shape[-1]
        load = torch.bincount(chosen.flatten(), minlength=count) / chosen.numel()
        balance = balance + count * (load * router.softmax(-1).mean(0)).sum() / len(all_logits)
        z_loss = z_loss + router.logsumexp(-1).pow(2).mean() / len(all_logits)
    return entropy, balance, z_loss


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint so that a crash never leaves half a file."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def clock(text: str) -> float:
    """Seconds since the epoch of the next time of day HH:MM in UTC."""
    now = datetime.now(timezone.utc)
    hour, minute = map(int, text.split(":"))
    moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (moment if moment > now else moment + timedelta(days=1)).timestamp()


def main() -> None:
    """Train; every line of the log has step, share of the time, losses and speed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights of an exported model")
    parser.add_argument("--rate", type=float, default=1.0, metavar="FACTOR", help="of the top learning rate")
    parser.add_argument("--until", help="time of day HH:MM in UTC at which the learning rate reaches zero")
    parser.add_argument("--hours", type=float, help="instead of --until: how long to train")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per step")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--save-every", type=float, default=240, help="seconds between checkpoints")
    parser.add_argument("--compile", action="store_true", help="compile the layers with torch.compile")
    options = parser.parse_args()

    until = clock(options.until) if options.until else time.time() + 3600 * options.hours
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (options, until, f"file://{folder}/meet"), nprocs=options.workers)


def work(rank: int, options: argparse.Namespace, until: float, meeting: str) -> None:
    """One single-threaded worker; all workers average their gradients and so stay identical."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.workers)
    model = load(options.start).train() if options.start else Model(Config())
    tools = optimizers(model, options.optimizer == "muon")
    begun, step, seen = time.time(), 0, 0
    if options.checkpoint.exists():
        state = torch.load(options.checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        for tool, kept in zip(tools, state["optimizers"], strict=True):
            tool.load_state_dict(kept)
        begun, step, seen = state["begun"], state["step"], state["seen"]
    if options.compile:
        for layer in model.layers:
            layer.compile(dynamic=False)
    weights = list(model.parameters())
    source = batches(options.cache, MICRO_BATCH, seed=step * options.workers + rank)
    next(source)
    rounds = max(1, options.tokens // (MICRO_BATCH * options.workers))
    saved = tick = time.time()
    average, progress = 0.0, (time.time() - begun) / (until - begun)
    parent = os.getppid()
    while progress < 1 and os.getppid() == parent:
        losses = torch.zeros(4)
        for _ in range(rounds):
            batch = source.send(512 if progress > LONG_FROM else 256)
            entropy, balance, z_loss = loss_parts(model, batch)
            total = entropy + BALANCE * balance + Z_LOSS * z_loss
            (total / rounds).backward()
            losses[:3] += torch.stack((entropy, balance, z_loss)).detach() / rounds
        losses[3] = (time.time() - begun) / (until - begun)
        shared = torch.cat([losses, *(weight.grad.flatten() for weight in weights if weight.grad is not None)])
        dist.all_reduce(shared)
        losses, *gradients = (shared / options.workers).split([4, *(weight.numel() for weight in weights)])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.view_as(weight)
        progress = losses[3].item()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for tool in tools:
            for group in tool.param_groups:
                group["lr"] = group["base_lr"] * options.rate * rate(step, progress)
            tool.step()
            tool.zero_grad()
        step += 1
        seen += rounds * MICRO_BATCH * options.workers
        value = losses[0].item()
        average = 0.95 * average + 0.05 * value if average else value
        if rank == 0 and step % 10 == 0:
            speed = 10 * rounds * MICRO_BATCH * options.workers / (time.time() - tick)
            tick = time.time()
            print(
                f"{step:6} {progress:6.3f} loss {value:.3f} mean {average:.3f} balance {losses[1]:.3f} "
                f"z {losses[2]:.2f} {seen / 1e6:.2f} M tokens {speed:,.0f} per second",
                flush=True,
            )
        if rank == 0 and (time.time() - saved > options.save_every or progress >= 1):
            saved = time.time()
            save(
                options.checkpoint,
                {
                    "model": model.state_dict(),
                    "optimizers": [tool.state_dict() for tool in tools],
                    "begun": begun,
                    "step": step,
                    "seen": seen,
                },
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
