# SPDX-License-Identifier: Apache-2.0
"""The learning rate of the released code: warm-up from a rate above zero, then a cosine that falls once an epoch."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from .arguments import StageConfig


def released_rate(
    step: int, *, peak: float, lowest: float, first: float, warmup_steps: int, steps_per_epoch: int, epochs: float
) -> float:
    """Return the learning rate of one step, counted from 0.

    In warm-up it rises linearly from `first`, to `peak` at the end. Afterwards it is that of a cosine from `peak` to
    `lowest` over all epochs, read at the start of the current epoch and counted from step 0: the peak is left with a
    jump when the warm-up ends, and the last epoch is still above the lowest rate.

    Source: the schedule `linear_warmup_cosine_lr` of the released code.
    Differs: nothing, as long as the warm-up is at most one epoch, as in each of its files.
    """
    if step < warmup_steps:
        return first + (peak - first) * step / warmup_steps
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * min((step // steps_per_epoch) / epochs, 1))) / 2


def build_schedule(config: StageConfig, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the schedule of a run of so many steps: the released code's where `lr_scheduler_kwargs` has
    `warmup_start_lr`, else the one of transformers that `lr_scheduler_type` names."""
    values: Any = config.lr_scheduler_kwargs or {}
    warmup_steps = config.get_warmup_steps(steps)
    if "warmup_start_lr" not in values:
        return get_scheduler(config.lr_scheduler_type, optimizer, warmup_steps, steps, values)
    rate = partial(
        released_rate,
        peak=config.learning_rate,
        lowest=values["min_lr"],
        first=values["warmup_start_lr"],
        warmup_steps=warmup_steps,
        steps_per_epoch=values["steps_per_epoch"],
        epochs=steps / values["steps_per_epoch"],
    )
    return LambdaLR(optimizer, lambda step: rate(step) / config.learning_rate)


def rates(config: StageConfig, steps: int) -> list[float]:
    """Return the learning rate of every step of a run, without running it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = build_schedule(config, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found
