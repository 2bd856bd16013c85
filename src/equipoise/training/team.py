"""The processes of one training, as Accelerate numbers them; a job sees them as `core.job.Processes`."""

import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized

from equipoise.core.errors import BadInput


def accelerator_for(device: str | torch.device) -> Accelerator:
    """One for work on this device.

    Accelerate keeps the device of a process' first accelerator for all later ones, and knows no `cuda:1` where it is alone:
    tensors go where the parameters are, and not to its `.device`.
    """
    return Accelerator(cpu=str(device).startswith("cpu") and not is_initialized())


@dataclass(frozen=True)
class Team:
    """The processes that hold one accelerator each."""

    accelerator: Accelerator

    @classmethod
    def of(cls, device: str) -> "Team":
        """Raises BadInput for several processes that would not know of each other."""
        accelerator = accelerator_for(device)
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and accelerator.num_processes == 1:
            raise BadInput(f"{started} processes were started, but without GPUs each is alone: add --device cpu.")
        return cls(accelerator)

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()
