"""Where the job's predictor of difficulty comes from: a folder, the rates that other models met, or nothing but embeddings.

Prompts are embedded by the model that is about to be trained: the mean of its last hidden states over the raw text, kept in
the job's folder. A predictor that `DifficultyPredictor.save` wrote must have been fitted to such embeddings of that model.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.records import read_rows
from equipoise.language import features
from equipoise.reinforcement.dots import (
    LEAST_REFERENCES,
    DifficultyPredictor,
    DifficultySampler,
    EmbeddingPredictor,
    Predictor,
)
from equipoise.reinforcement.selection import sampler_of

if TYPE_CHECKING:
    from equipoise.core.job import Processes
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.recipe import Recipe

EMBEDDINGS, PREDICTOR = "embeddings", "predictor"  # folders in the job's
_PLACE = "head.input"
_DIVISION = 10  # the stream of a seed that divides rated prompts


@dataclass(frozen=True, eq=False)
class Rates:
    """rates: [M, N], the success that M other models had on the prompts, nan where nobody measured it. left_out: rows of
    the file about other prompts.
    """

    path: Path
    models: tuple[str, ...]
    rates: Tensor
    left_out: int

    @classmethod
    def read(cls, path: Path, problems: Sequence[Problem]) -> Rates:
        """A file of rows with "id" or "prompt", "model" and "rate". Rows about other prompts are left out and counted.

        Raises BadInput, naming the line, for a rate outside [0, 1], a missing field and a pair that comes twice, and for a
        file that rates too few of the prompts to divide them into references and others.
        """
        by_id = {problem.id: [place] for place, problem in enumerate(problems)}
        by_prompt: dict[str, list[int]] = {}
        for place, problem in enumerate(problems):
            by_prompt.setdefault(problem.prompt, []).append(place)
        found: dict[str, dict[int, float]] = {}
        left_out = 0
        for where, _, row in read_rows(Path(path)):
            model, rate, places = _rated(where, row, by_id, by_prompt)
            left_out += not places
            of_model = found.setdefault(model, {})
            for place in places:
                if place in of_model:
                    raise BadInput(
                        f"{where}: the rate of {model!r} on {problems[place].id!r} was given before: give one."
                    )
                of_model[place] = rate
        models = tuple(model for model in found if found[model])
        rates = torch.full((len(models), len(problems)), torch.nan, dtype=torch.float64)
        for number, model in enumerate(models):
            rates[number, list(found[model])] = torch.tensor(list(found[model].values()), dtype=torch.float64)
        made = cls(Path(path), models, rates, left_out)
        if not models:
            raise BadInput(
                f"{path} rates none of the {len(problems)} prompts that are learnt from: its ids or prompts must be those "
                "of the file of prompts."
            )
        rated, complete = made._rated
        if len(complete) < LEAST_REFERENCES or len(rated) < 2 * LEAST_REFERENCES:
            raise BadInput(
                f"{path} rates {len(rated)} of the prompts that are learnt from, {len(complete)} of them by every model: "
                f"expected at least {2 * LEAST_REFERENCES}, of which {LEAST_REFERENCES} by every model."
            )
        return made

    def fit(self, embeddings: Tensor, recipe: Recipe) -> DifficultyPredictor:
        """A predictor fitted to them: half of the rated prompts are references, of those that every model has met."""
        rated, complete = self._rated
        words = np.random.SeedSequence([recipe.seed, _DIVISION])
        count = min(len(complete), len(rated) // 2)
        references = np.sort(np.random.default_rng(words).permutation(complete.numpy())[:count])
        others = torch.from_numpy(np.setdiff1d(rated.numpy(), references))
        difficulty, chosen = 1 - self.rates, torch.from_numpy(references)
        return DifficultyPredictor.fit(
            embeddings[others],
            difficulty[:, others],
            embeddings[chosen],
            difficulty[:, chosen],
            seed=recipe.seed,
            references=min(recipe.reference_questions, count),
        )

    @property
    def _rated(self) -> tuple[Tensor, Tensor]:
        """The places of prompts that some model has met, and of those that every one has."""
        known = ~self.rates.isnan()
        return known.any(0).nonzero().flatten(), known.all(0).nonzero().flatten()


def _rated(
    where: str, row: Mapping[str, Any], by_id: Mapping[str, list[int]], by_prompt: Mapping[str, list[int]]
) -> tuple[str, float, list[int]]:
    """The model of a row, its rate, and the places of the prompts that it is about."""
    names = ", ".join(map(str, row)) or "nothing"
    if row.get("id") is None and row.get("prompt") is None:
        raise BadInput(f'{where}: expected "id" or "prompt", "model" and "rate" (found: {names}).')
    model, rate = row.get("model"), row.get("rate")
    if not isinstance(model, str) or not model:
        raise BadInput(f'{where}: "model" is {model!r}, expected the name of whose rate it is.')
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise BadInput(f'{where}: "rate" is {rate!r}, expected a share of right responses, a number in [0, 1].')
    if row.get("id") is not None:
        return model, float(rate), by_id.get(str(row["id"]), [])
    return model, float(rate), by_prompt.get(str(row["prompt"]), [])


@dataclass(frozen=True, eq=False)
class PredictorSource:
    """What a request says of its predictor. folder: of one that is there; rates: what one is fitted to; both None: none."""

    folder: Path | None = None
    rates: Rates | None = None

    @classmethod
    def read(
        cls, recipe: Recipe, problems: Sequence[Problem], folder: Path | None, rates: Path | None
    ) -> PredictorSource | None:
        """None for a recipe that predicts nothing. Raises BadInput for what cannot be read, or does not go together."""
        recipe.check_pool(len(problems))
        given = {"predictor": folder, "rates": rates}
        named = [name for name, each in given.items() if each is not None]
        if recipe.select != "dots":
            if named:
                raise BadInput(f"{named[0]} is of use with select=dots alone, and select is {recipe.select!r}.")
            return None
        if len(named) == 2:
            raise BadInput("a predictor and rates were given, from which another would be fitted: give one of the two.")
        if folder is not None:
            DifficultyPredictor.load(folder)
        return cls(folder, None if rates is None else Rates.read(rates, problems))

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of what was read."""
        if self.rates is not None:
            return {"rates": sha256_file(self.rates.path)}
        if self.folder is None:
            return {}
        digests = [sha256_file(path) for path in sorted(self.folder.iterdir()) if path.is_file()]
        return {"predictor": hashlib.sha256("".join(digests).encode()).hexdigest()}

    @property
    def told(self) -> str:
        """Where predictions come from, for a report."""
        if self.rates is not None:
            return f"fitted to the rates of {len(self.rates.models)} models in {self.rates.path}"
        if self.folder is not None:
            return f"the one in {self.folder}"
        return "none was learnt: the model's own embeddings as they are (--rates or --predictor give a better one)"

    def check(self, language_model: LanguageModel) -> None:
        """Raises BadInput for a predictor of embeddings of another width than this model's."""
        if self.folder is None:
            return
        width = DifficultyPredictor.load(self.folder).settings["width"]
        found = language_model.model.config.get_text_config().hidden_size
        if width != found:
            raise BadInput(
                f"the predictor in {self.folder} reads embeddings of {width} numbers, and {language_model.name} gives "
                f"{found}: fit one to this model's, with rates."
            )

    def sampler(
        self,
        recipe: Recipe,
        language_model: LanguageModel,
        problems: Sequence[Problem],
        folder: Path | None,
        processes: Processes,
    ) -> DifficultySampler:
        """The sampler of a run that begins from this model; what was made for it earlier is read from the folder.

        Of several processes the main one makes what the others read.
        """
        with ExitStack() as stack:
            into = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if folder is not None and not processes.main:
                processes.wait()
            embeddings = embedded(language_model, problems, into / EMBEDDINGS)
            predictor = self._predictor(recipe, embeddings, into / PREDICTOR)
            if folder is not None and processes.main:
                processes.wait()
        return sampler_of(recipe, embeddings, predictor)

    def _predictor(self, recipe: Recipe, embeddings: Tensor, folder: Path) -> Predictor:
        if self.folder is not None:
            return DifficultyPredictor.load(self.folder)
        if self.rates is None:
            return EmbeddingPredictor()
        with suppress(BadInput):  # not there yet, or damaged
            return DifficultyPredictor.load(folder)
        self.rates.fit(embeddings, recipe).save(folder)
        return DifficultyPredictor.load(folder)


def embedded(language_model: LanguageModel, problems: Sequence[Problem], folder: Path) -> Tensor:
    """The mean of a model's last hidden states over each prompt's raw text, [N, E] float32; kept in the folder."""
    plain = replace(language_model, chat_template="none")
    texts = [problem.prompt for problem in problems]
    found = features.extract(plain, texts, [_PLACE], pool="mean", into=folder, dtype="float32")
    return torch.tensor(found.at(_PLACE))
