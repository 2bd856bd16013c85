"""The work of `route evaluate`: scores that are stored, or made by a router and by its model, measured domain by domain.

Killed at any moment, the same call goes on: with the states that were read, and with asked.jsonl, a row for each few prompts
that the model was asked about. Stored scores of a name that is made here, too, are told apart as "NAME (given)".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.core.job import Request
from equipoise.core.shares import Bounded
from equipoise.data.problems import Problem
from equipoise.language.encode import encode_prompts
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.routing import prompt_states
from equipoise.routing.baselines import STATED_TOKENS, semantic_agreement, verbalised
from equipoise.routing.fitting import features_place
from equipoise.routing.kept import Kept
from equipoise.routing.labels import VERBALISED as VERBALISED_PROMPT
from equipoise.routing.labels import Labels, read_labels, scores_of, solved_of, tested
from equipoise.routing.measured import HeldOut, Threshold
from equipoise.routing.result import EvaluationPlan, RouteEvaluation
from equipoise.routing.router import ABOUT, Router
from equipoise.routing.router import load as load_router
from equipoise.routing.routerxbench import Bands, quality_outcomes
from equipoise.routing.scoring import FEATURES, cards, given_scores

Array = NDArray[np.float64]
ROUTER, VERBALISED, SEMANTIC = "router", "verbalised", "semantic-entropy"
ASKED = "asked.jsonl"
NOTHING = Bounded(math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Evaluating(Request):
    """A request to evaluate, read and found right. scores: those that the rows hold, [n] by name."""

    labels: Labels
    scores: Mapping[str, Array]
    solved: Array
    router: Router | None
    model: str | Path | LanguageModel | None
    ask: bool
    samples: int
    max_new_tokens: int
    bands: Bands
    seed: int
    batch_tokens: int | None
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        labels: Any,
        *,
        router: Path | None,
        model: Any,
        ask: bool,
        samples: int,
        max_new_tokens: int,
        bands: tuple[tuple[float, float], tuple[float, float]],
        limit: int | None,
        fields: Mapping[str, str] | None,
        seed: int,
        batch_tokens: int | None,
        loading: dict[str, Any],
    ) -> Evaluating:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        if (router is None) != (model is None):
            raise BadInput(
                "a router reads prompts by its model: give router and model, or neither for rows that hold scores."
            )
        if ask and model is None:
            raise BadInput("there is no model to ask: give router and model, or leave ask out.")
        found = tested(read_labels(labels, limit=limit, fields=fields))
        scores = scores_of(found)
        if router is None and not scores:
            raise BadInput(
                f"{found.name}: no row has scores: give router and model, or the scores.jsonl that route fit wrote."
            )
        taken = scores.keys() & {ROUTER, VERBALISED, SEMANTIC}
        if router is not None and taken:
            raise BadInput(f"{found.name}: the score {min(taken)!r} has a name that is given here: call it otherwise.")
        names, inputs = {"labels": found.name}, {"labels": found.digest} if found.digest else {}
        loaded = None
        if router is not None:
            loaded = load_router(router)
            names |= {"router": str(router), "model": model.name if isinstance(model, LanguageModel) else str(model)}
            inputs["router"] = sha256_file(router / ABOUT)
        return cls(
            labels=found,
            scores=scores,
            solved=solved_of(found),
            router=loaded,
            model=model,
            ask=ask,
            samples=samples,
            max_new_tokens=max_new_tokens,
            bands=Bands(*bands),
            seed=seed,
            batch_tokens=batch_tokens,
            loading=loading,
            names=names,
            inputs=inputs | objects_digests({"model": model}),
            resolved={"date": date},
        )

    def plan(self) -> EvaluationPlan:
        language_model, rows, _ = self._opened()
        more = () if language_model is None else (ROUTER, "length, logits, chains", *(VERBALISED, SEMANTIC) * self.ask)
        return EvaluationPlan(
            prompts=len(self.labels.problems),
            domains=dict(Counter(self.labels.domains)),
            scores=(*self.scores, *more),
            reader="nobody: the rows hold scores" if language_model is None else language_model.source,
            tokens=sum(map(len, rows)),
        )

    def work(self, folder: Path | None) -> RouteEvaluation:
        language_model, rows, doubts = self._opened()
        scores, unread, damaged = self._scored(language_model, rows, folder)
        weak, strong = np.array(self.labels.weak), np.array(self.labels.strong)
        groups, domains = np.array(self.labels.groups), np.array(self.labels.domains)
        sent = None
        held, aim, target = HeldOut(0, NOTHING, NOTHING, "none"), "", math.nan
        if self.router is not None:
            sent = ~self.router.keeps(scores[ROUTER])
            chosen = _threshold(self.router)
            aim, target = chosen.aim, chosen.target
            held = chosen.check(scores[ROUTER], weak, strong, clusters=groups)
        measured, table = {}, {}
        for name in dict.fromkeys(domains.tolist()):
            inside = domains == name
            measured[name] = cards(
                {score: values[inside] for score, values in scores.items()},
                weak[inside],
                strong[inside],
                self.solved[inside],
                groups[inside],
                self.bands,
                self.seed,
            )
            table[name] = quality_outcomes(
                weak[inside],
                strong[inside],
                sent=None if sent is None else sent[inside],
                clusters=groups[inside],
            )
        return RouteEvaluation(
            names=self.names,
            prompts=len(self.labels.problems),
            router="" if self.router is None else self.router.kind,
            cards=measured,
            scenarios=_order(measured),
            threshold=math.nan if self.router is None else self.router.threshold,
            aim=aim,
            target=target,
            held_out=held,
            outcomes=table,
            unread=unread,
            notes=(*doubts, *self.labels.notes(), *damaged),
        )

    def scratch(self) -> tuple[str, ...]:
        return FEATURES, ASKED

    def _opened(self) -> tuple[LanguageModel | None, list[list[int]], list[str]]:
        """The model, the prompts' tokens, and doubts about whether it is the router's; a wrong one is refused."""
        if self.model is None or self.router is None:
            return None, [], []
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        doubts = self.router.check(language_model)
        rows = prompt_states.encode(
            language_model, [problem.asked for problem in self.labels.problems], self.router.reads
        )
        names = [problem.id for problem in self.labels.problems]
        prompt_states.check_lengths(language_model, rows, names)
        if self.ask:
            names = [repr(name) for name in names]
            for prompts, most in (
                ([problem.asked for problem in self.labels.problems], self.max_new_tokens),
                (
                    [VERBALISED_PROMPT.format(question=problem.prompt) for problem in self.labels.problems],
                    STATED_TOKENS,
                ),
            ):
                check_room(language_model, encode_prompts(language_model, prompts)[0], most, names)
        if self.labels.digest and self.labels.digest == self.router.chosen.get("labels"):
            doubts.append(
                f"{self.labels.name} is the file that the router was fitted on: three quarters of these prompts were seen "
                "by it. Measure on others, or on the scores.jsonl of the fit, of which the tested rows are taken."
            )
        return language_model, rows, doubts

    def _scored(
        self, language_model: LanguageModel | None, rows: Sequence[Sequence[int]], folder: Path | None
    ) -> tuple[dict[str, Array], int, tuple[str, ...]]:
        """Those of the rows and those that are made here; how many replies held no number; rows of replies made anew."""
        if language_model is None or self.router is None:
            return dict(self.scores), 0, ()
        prompts = [problem.asked for problem in self.labels.problems]
        unread = 0
        with features_place(folder) as place:
            z = prompt_states.extract(
                language_model, prompts, self.router.reads, into=place / FEATURES, batch_tokens=self.batch_tokens
            ).values
            made = given_scores(language_model, rows, z, self.seed)
            made[ROUTER] = made[self.router.kind] if self.router.needs != "states" else self.router.score(z)
        damaged: tuple[str, ...] = ()
        if self.ask:
            kept = Kept(None if folder is None else folder / ASKED, language_model)
            stated = kept.parts("Asking how sure it is", self.labels.problems, partial(_stated, language_model))
            sampled = kept.parts("Sampling answers", self.labels.problems, partial(self._sampled, language_model))
            made[VERBALISED], unread = _joined(stated), sum(part["unread"] for part in stated)
            made[SEMANTIC], damaged = _joined(sampled), kept.damaged
        given = {f"{name} (given)" if name in made else name: score for name, score in self.scores.items()}
        return {ROUTER: made[ROUTER], **made, **given}, unread, damaged

    def _sampled(self, language_model: LanguageModel, first: int, some: Sequence[Problem]) -> dict[str, Any]:
        found = semantic_agreement(
            language_model,
            [problem.asked for problem in some],
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            keys=range(first, first + len(some)),
        )
        return {"score": found.score.tolist()}


def _stated(language_model: LanguageModel, _: int, some: Sequence[Problem]) -> dict[str, Any]:
    found = verbalised(language_model, [problem.prompt for problem in some])
    return {"score": found.score.tolist(), "unread": found.unread}


def _joined(parts: Sequence[Mapping[str, Any]]) -> Array:
    return np.array([score for part in parts for score in part["score"]], float)


def _threshold(router: Router) -> Threshold:
    about = router.chosen
    aim, target = str(about.get("aim", "calls")), float(about.get("target", math.nan))
    calls = Bounded(*(float(about.get(name, math.nan)) for name in ("calls", "lower", "upper")))
    confidence, n = float(about.get("confidence", math.nan)), int(about.get("n", 0))
    return Threshold(router.threshold, aim, target, confidence, n, calls, NOTHING)


def _order(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Scores by the mean of a measure over domains, the best first; those that are undefined in a domain are left out."""
    order = {}
    for measure in ("auroc", "lpm", "mpm", "hcr"):
        means: dict[str, float] = {}
        names = set.intersection(*(set(each) for each in measured.values()))
        for name in sorted(names):
            values = [getattr(each[name], measure).value for each in measured.values()]
            means[name] = float(np.mean(values))
        known = [name for name, value in means.items() if not math.isnan(value)]
        order[measure] = tuple(sorted(known, key=lambda name: (-means[name], name)))
    return order
