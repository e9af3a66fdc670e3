"""Every random number of a training run, as a pure function of the run's seed and the step.

A generator is made fresh for each micro-step, so a resumed run needs no stored random state. Every process of a
distributed run holds the *same* generator: it draws for the whole batch of all processes and keeps its own rows. So two
processes with batch b see exactly what one process with batch 2 b sees. In one process these are torch's own draws.
"""
import hashlib
from typing import Any, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def seed_at(*key: Any) -> int:
    """A 63-bit seed for a key such as (run's seed, micro-step, "noise"): stable over machines and Python versions."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def generator_at(*key: Any) -> torch.Generator:
    """A fresh CPU generator for a key; the same key gives the same numbers, always."""
    return torch.Generator().manual_seed(seed_at(*key))


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) when nothing is distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def shard(rows: Sequence | Tensor) -> Sequence | Tensor:
    """This process's own part of the rows (a tensor, a list) of the batch of all processes."""
    rank, world = rank_and_world()
    share = len(rows) // world
    return rows[rank * share:(rank + 1) * share]


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal noise for this process's rows, shape (b, ...), on the CPU."""
    return shard(torch.randn(_all_rows(shape), generator=generator))


def rand(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) for this process's rows, shape (b, ...), on the CPU."""
    return shard(torch.rand(_all_rows(shape), generator=generator))


def randint(low: int, high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Whole numbers in [low, high) for this process's rows, shape (b, ...), on the CPU: timesteps, rows of a table."""
    return shard(torch.randint(low, high, _all_rows(shape), generator=generator))


def _all_rows(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0] * rank_and_world()[1], *shape[1:])
