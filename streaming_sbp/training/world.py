"""The ranks that train one model together. One rank, without torch.distributed, is the usual case and no special one.

Every rank makes the same global batch and trains its rows; gradients are summed. Values are broadcast as JSON: nothing
is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from streaming_sbp.config import ConfigError

TIMEOUT_S = 600  # a rank that waits longer for another one ends with an error; evaluations and saves are shorter


class World:
    """``rank`` of ``size``; the first rank leads. Made from the environment that torchrun sets."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def from_environment(cls) -> World:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
        return cls(int(os.environ.get("RANK", "0")), size)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def rows(self, num_rows: int) -> range:
        """This rank's rows of a global batch. Raises ConfigError when they cannot be shared out equally."""
        if num_rows % self.size:
            raise ConfigError(f"training.batch_sequences = {num_rows}: expected a multiple of the {self.size} ranks")
        share = num_rows // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def broadcast(self, value: Any = None) -> Any:
        """The first rank's ``value`` (JSON-able), on every rank."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.leads else b""
        length = torch.tensor([len(content)])
        dist.broadcast(length, src=0)
        data = torch.frombuffer(bytearray(content or int(length)), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        return json.loads(bytes(data.numpy()))

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Sum each tensor over the ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
