"""A scorer: which prompts will the model solve? SPPO's critic (arXiv:2604.08865) on its own, calibrated by two numbers.

    scorer = Scorer.load("equipoise-out/solvable-fit")
    scorer(["What is 3 + 4?", "Prove Goldbach's conjecture."])        array([0.93, 0.04])

It reads the prompt alone: no answer is written, no gold answer is needed, and a batch costs one pass of the critic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.core.calibration import Calibration
from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular, seal, unseal, write_atomic
from equipoise.core.folder import damage, read_manifest
from equipoise.core.progress import progress
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room
from equipoise.language.model import evaluating, memory_advice
from equipoise.reinforcement.critic import Critic, prompt_logits, reader

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

COMMAND = "solvable fit"
NUMBERS, CRITIC_FOLDER = "scorer.json", "critic"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Scorer:
    """A critic with what reads prompts for it, and the calibration of its logits. model: whose success it predicts.

    spread: the lowest and the highest prediction that it was tested with.
    """

    critic: Critic
    reader: LanguageModel
    calibration: Calibration
    model: str
    spread: tuple[float, float]

    def __call__(self, prompts: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float64]:
        """The chance that the model solves each prompt (a text, or the turns of a conversation) at one try, [N] in [0, 1].

        Raises BadInput for one that is empty, or longer than the critic's context.
        """
        return self.of_tokens(self.encode(prompts), batch_size)

    def of_tokens(self, rows: Sequence[Sequence[int]], batch_size: int = 64) -> NDArray[np.float64]:
        """The same of prompts as `encode` gave them."""
        return self.calibration(logits(self.critic, self.reader, rows, batch_size))

    def encode(self, prompts: Sequence[Any], names: Sequence[object] | None = None) -> list[list[int]]:
        """Prompts as the critic reads them. names: what errors call them. Raises BadInput as the call itself."""
        rows, _ = encode_prompts(self.reader, prompts)
        check_room(self.reader, rows, 0, names)
        return rows

    def save(self, folder: str | Path) -> None:
        """The critic with its tokenizer, and scorer.json with the numbers of its calibration."""
        folder = Path(folder)
        self.critic.save(folder / CRITIC_FOLDER, self.reader.tokenizer)
        numbers = {
            "solvable": _FORMAT,
            "slope": self.calibration.slope,
            "intercept": self.calibration.intercept,
            "spread": list(self.spread),
            "model": self.model,
            "chat_template": self.reader.chat_template,
            "date": str(self.reader.date),
        }
        write_atomic(folder / NUMBERS, seal(numbers, indent=2))

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Scorer:
        """That of a folder which `solvable fit` finished. Raises BadInput for another, and for one that is not whole."""
        check_scorer(Path(folder))
        return cls.read(folder, device=device)

    @classmethod
    def read(cls, folder: str | Path, *, device: str = "auto") -> Scorer:
        """What `save` wrote. Raises BadInput for a folder that holds something else."""
        folder = Path(folder)
        try:
            numbers, sealed = unseal(read_regular(folder / NUMBERS))
            if not sealed or numbers["solvable"] != _FORMAT:
                raise ValueError("it is of another version, or was altered")
            calibration = Calibration(float(numbers["slope"]), float(numbers["intercept"]))
            lowest, highest = map(float, numbers["spread"])
            how = {name: str(numbers[name]) for name in ("chat_template", "date")}
            model = str(numbers["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{folder} holds no scorer ({NUMBERS}: {error}): give a folder of `solvable fit`."
            ) from error
        critic = Critic.load(folder / CRITIC_FOLDER, device=open_device(device))
        own = reader(critic, folder / CRITIC_FOLDER, **how)
        return cls(critic, own, calibration, model, (lowest, highest))


def check_scorer(folder: Path) -> str:
    """The digest of a finished scorer. Raises BadInput for a folder that is something else, or damaged, naming the files."""
    command = read_manifest(folder)["command"]
    if command != COMMAND:
        raise BadInput(f"{folder} was made by {command!r}: expected a folder of `solvable fit`.")
    of_scorer = (NUMBERS, f"{CRITIC_FOLDER}/")
    if damaged := [name for name in damage(folder) if name.startswith(of_scorer)]:
        raise BadInput(f"{folder} is damaged ({', '.join(damaged)}): the command that made it makes that part again.")
    files = read_manifest(folder)["files"]
    listed = {name: row["sha256"] for name, row in files.items() if name.startswith(of_scorer)}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def logits(
    critic: Critic, reader: LanguageModel, rows: Sequence[Sequence[int]], batch_size: int
) -> NDArray[np.float64]:
    """What a critic says of prompts, [N]; the longest are read first, so that padding is least and memory fails early."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
    found = np.empty(len(rows))
    with evaluating(critic), memory_advice(batch_size), progress("Scoring", total=len(rows), unit="prompts") as bar:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = prompt_logits(critic, [rows[place] for place in chosen], reader.pad_id, reader.device)
            found[chosen] = batch.cpu().double().numpy()
            bar.advance(len(chosen))
    return found


def open_device(device: str) -> torch.device:
    """The device of this name; auto is cuda, else mps, else cpu. Raises BadInput for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"Device {device!r} cannot be used ({reason}): use --device cpu.") from error
