"""The processes of one training, as Accelerate numbers them; a job sees them as `core.job.Processes`."""

import os
from dataclasses import dataclass

from accelerate import Accelerator

from equipoise.core.errors import BadInput


@dataclass(frozen=True)
class Team:
    """The processes that hold one accelerator each."""

    accelerator: Accelerator

    @classmethod
    def of(cls, device: str) -> "Team":
        """Raises BadInput for several processes that would not know of each other."""
        accelerator = Accelerator(cpu=device == "cpu")
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
