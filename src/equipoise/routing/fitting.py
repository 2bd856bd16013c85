"""The work of `route fit`: prompts are read, probes learn, the best is chosen, calibrated, given a threshold, tested.

Killed at any moment, the same call goes on with the states that were read (`language.features`); all else takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import write_atomic
from equipoise.core.job import Request
from equipoise.core.scores import auroc
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, score_interval
from equipoise.language.features import objects_digests
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.routing import prompt_states
from equipoise.routing.labels import Labels, Part, as_row, divide, read_labels, solved_of
from equipoise.routing.measured import Threshold
from equipoise.routing.result import LENGTH, RANDOM, FitPlan, RouteFit
from equipoise.routing.router import ABOUT, NUMBERS, Router, logits_of
from equipoise.routing.router import load as load_router
from equipoise.routing.routerxbench import Bands, bounded, quality_outcomes
from equipoise.routing.scoring import (
    CLASSIFIERS,
    DRAWS,
    FEATURES,
    PROBES,
    cards,
    directions,
    given_scores,
    large_enough,
)
from equipoise.routing.thresholds import threshold

if TYPE_CHECKING:
    from equipoise.routing.job import ProbeSettings
    from equipoise.routing.probes import Probe
    from equipoise.routing.router import Reads

SCORES = "scores.jsonl"
CANDIDATES = ("dirichlet", "mean", LENGTH)
CALLS = 0.3  # where neither calls nor quality is given
APART = 0.02  # the score of a prompt read alone, as it is served, from that of its batch, at most; bfloat16 needs some
AGAIN = 3  # prompts that are read alone
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fitting(Request):
    """A request to fit a router, read and found right. parts: of each prompt. aim: calls or quality, and how much."""

    model: str | Path | LanguageModel
    labels: Labels
    parts: tuple[str, ...]
    kind: str
    reads: Reads
    aim: tuple[str, float]
    confidence: float
    bands: Bands
    batch_tokens: int | None
    loading: Mapping[str, Any]
    settings: ProbeSettings
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        labels: Any,
        *,
        kind: str,
        reads: Reads,
        calls: float | None,
        quality: float | None,
        confidence: float,
        bands: tuple[tuple[float, float], tuple[float, float]],
        limit: int | None,
        fields: Mapping[str, str] | None,
        batch_tokens: int | None,
        loading: dict[str, Any],
        settings: ProbeSettings,
    ) -> Fitting:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        if calls is not None and quality is not None:
            raise BadInput("a threshold has one aim: give calls, a share of prompts, or quality, a mean quality.")
        found = read_labels(labels, limit=limit, fields=fields)
        parts = divide(found.groups, settings.seed)
        solved = solved_of(found)
        for part in ("fit", "choose", "test"):
            seen = {each for each, own in zip(solved.tolist(), parts, strict=True) if own == part}
            if len(seen) < 2:
                raise BadInput(
                    f"{found.name}: all {parts.count(part)} prompts to {part} have one label, "
                    f"{'answered well' if seen == {1.0} else 'not answered well'}: give more prompts, or easier and harder "
                    "ones."
                )
        if quality is not None:  # refused now where even all calls would not show it
            choosing = [place for place, part in enumerate(parts) if part == "choose"]
            weak, strong = (np.array(each)[choosing] for each in (found.weak, found.strong))
            own = np.array(found.groups)[choosing]
            threshold(
                np.zeros(len(choosing)),
                quality=quality,
                weak=weak,
                strong=strong,
                clusters=own,
                confidence=confidence,
                candidates=candidates(kind),
            )
        names = {"labels": found.name, "model": model.name if isinstance(model, LanguageModel) else str(model)}
        return cls(
            model=model,
            labels=found,
            parts=tuple(parts),
            kind=kind,
            reads=reads,
            aim=("quality", quality) if quality is not None else ("calls", CALLS if calls is None else calls),
            confidence=confidence,
            bands=Bands(*bands),
            batch_tokens=batch_tokens,
            loading=loading,
            settings=settings,
            names=names,
            inputs=({"labels": found.digest} if found.digest else {}) | objects_digests({"model": model}),
            resolved={
                **settings.model_dump(),
                "date": date,
                "calls": CALLS if calls is None and quality is None else calls,
            },
        )

    def plan(self) -> FitPlan:
        language_model, rows = self._opened()
        depth = len(prompt_states.layers(language_model.model))
        width = language_model.model.config.get_text_config().hidden_size
        tokenizer: Any = language_model.tokenizer
        return FitPlan(
            model=language_model.source,
            prompts=dict(Counter(self.parts)),
            domains=dict(Counter(self.labels.domains)),
            solved=float(self._solved().mean()),
            shown=tokenizer.decode(rows[0]),
            layers=depth,
            width=width,
            tokens=sum(min(len(row), prompt_states.POOLED_TOKENS) for row in rows),
            disk=4 * len(rows) * depth * width,
            settings=self._shown_settings(),
        )

    def work(self, folder: Path | None) -> RouteFit:
        language_model, rows = self._opened()
        with features_place(folder) as place:
            z = prompt_states.extract(
                language_model,
                [problem.asked for problem in self.labels.problems],
                self.reads,
                into=place / FEATURES,
                batch_tokens=self.batch_tokens,
            ).values
            return self._fitted(language_model, rows, z, folder)

    def scratch(self) -> tuple[str, ...]:
        return (FEATURES,)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _opened(self) -> tuple[LanguageModel, list[list[int]]]:
        """The model and the prompts' tokens. Raises BadInput for one that it has no room for."""
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        rows = prompt_states.encode(language_model, [problem.asked for problem in self.labels.problems], self.reads)
        prompt_states.check_lengths(language_model, rows, [problem.id for problem in self.labels.problems])
        return language_model, rows

    def _of(self, *parts: Part) -> NDArray[np.intp]:
        return np.flatnonzero(np.isin(self.parts, parts))

    def _solved(self) -> Array:
        return solved_of(self.labels)

    def _shown_settings(self) -> dict[str, Any]:
        aim, target = self.aim
        return {
            **self.settings.model_dump(),
            "kind": self.kind,
            "reads": self.reads,
            aim: target,
            "confidence": self.confidence,
            "bands": str(self.bands),
        }

    # --- learning, choosing, testing ----------------------------------------------------------------------------------

    def _fitted(
        self, language_model: LanguageModel, rows: Sequence[Sequence[int]], z: NDArray[Any], folder: Path | None
    ) -> RouteFit:
        weak, strong, solved = np.array(self.labels.weak), np.array(self.labels.strong), self._solved()
        groups, domains = np.array(self.labels.groups), np.array(self.labels.domains)
        learnt, choosing, test = (self._of(part) for part in ("fit", "choose", "test"))
        probes = {name: self._probe(name).fit(z[learnt], solved[learnt]) for name in PROBES}
        scores = given_scores(language_model, rows, z, self.settings.seed)
        scores |= {name: probe.score_prompts(z) for name, probe in probes.items()}
        vectors = directions(z)
        scores |= {
            name: kind().fit(vectors[learnt], solved[learnt]).score_prompts(vectors)
            for name, kind in CLASSIFIERS.items()
        }
        chosen_on = {name: float(auroc(scores[name][choosing], solved[choosing])) for name in CANDIDATES}
        kind = max(CANDIDATES, key=chosen_on.__getitem__) if self.kind == "best" else self.kind
        aim, target = self.aim
        chosen = threshold(
            scores[kind][choosing],
            calls=target if aim == "calls" else None,
            quality=target if aim == "quality" else None,
            weak=weak[choosing],
            strong=strong[choosing],
            clusters=groups[choosing],
            confidence=self.confidence,
            candidates=candidates(self.kind),
        )
        router = self._router(language_model, kind, probes, scores[kind], solved, chosen, z.shape[1:])
        self._check(router, language_model, rows, scores[kind], folder)
        tested = {name: score[test] for name, score in scores.items()}
        sent = scores[kind][test] < chosen.value
        p = router.probability(scores[kind][test])
        main = tuple(dict.fromkeys((kind, *CANDIDATES, "last")))
        self._write(folder, scores, solved)
        return RouteFit(
            names=self.names,
            source=language_model.source,
            settings=self._shown_settings(),
            prompts=dict(Counter(self.parts)),
            kind=kind,
            chosen_on=chosen_on,
            threshold=chosen,
            held_out=chosen.check(scores[kind][test], weak[test], strong[test], clusters=groups[test]),
            cards=cards(tested, weak[test], strong[test], solved[test], groups[test], self.bands, self.settings.seed),
            domains={
                name: cards(
                    {score: tested[score][inside] for score in main},
                    weak[test][inside],
                    strong[test][inside],
                    solved[test][inside],
                    groups[test][inside],
                    self.bands,
                    self.settings.seed,
                )
                for name in dict.fromkeys(domains.tolist())
                if (inside := domains[test] == name).any()
            },
            gains={
                name: self._gain(score, tested[LENGTH], solved[test], groups[test])
                for name, score in tested.items()
                if name not in (LENGTH, RANDOM)
            },
            cross=self._cross(kind, z, solved, groups, domains),
            outcomes=quality_outcomes(weak[test], strong[test], sent=sent, clusters=groups[test]),
            brier=bounded(item_interval((p - solved[test]) ** 2, groups[test])),
            alpha={
                name: tuple(probes[name].router(0.0, reads="raw").alpha.tolist()) for name in ("dirichlet", "softmax")
            },
            g=probes["dirichlet"].g_,
            slope=router.slope,
            intercept=router.intercept,
            layers=z.shape[1],
            width=z.shape[2],
            bytes=0 if folder is None else sum((folder / name).stat().st_size for name in (ABOUT, NUMBERS)),
            notes=tuple(self.labels.notes()),
        )

    def _probe(self, name: str) -> Probe:
        given = self.settings
        return PROBES[name](
            learning_rate=given.learning_rate,
            batch_size=given.batch_size,
            epochs=given.epochs,
            random_state=given.seed,
        )

    def _router(
        self,
        language_model: LanguageModel,
        kind: str,
        probes: Mapping[str, Probe],
        score: Array,
        solved: Array,
        chosen: Threshold,
        shape: tuple[int, ...],
    ) -> Router:
        """What is saved, calibrated on the prompts that chose it."""
        from equipoise.core.calibration import Calibration

        choosing = self._of("choose")
        about = {"aim": chosen.aim, "target": chosen.target, "confidence": chosen.confidence, "n": chosen.n}
        about |= {"labels": self.labels.digest}
        about |= {"calls": chosen.calls.value, "lower": chosen.calls.lower, "upper": chosen.calls.upper}
        whose = {
            "reads": self.reads,
            "model": language_model.name,
            "fingerprint": prompt_states.fingerprint(language_model.model),
            "chosen": about,
        }
        if kind == LENGTH:
            fitted = Calibration.of(score[choosing], solved[choosing])
            return Router(
                LENGTH,
                chosen.value,
                layers=shape[0],
                width=shape[1],
                slope=fitted.slope,
                intercept=fitted.intercept,
                **whose,
            )
        probe = probes[kind]
        probe.calibration_ = Calibration.of(logits_of(score[choosing]), solved[choosing])
        return probe.router(chosen.value, **whose)

    def _check(
        self,
        router: Router,
        language_model: LanguageModel,
        rows: Sequence[Sequence[int]],
        score: Array,
        folder: Path | None,
    ) -> None:
        """Writes the router, reads it again, and scores prompts one by one as they are served; raises WorkFailed."""
        with features_place(folder) as place:
            router.save(place)
            again = load_router(place)
        for index in range(min(AGAIN, len(rows))):
            served = again.score_prefill(prompt_states.prefill(language_model, rows[index]))
            if not abs(served - score[index]) <= APART:
                raise WorkFailed(
                    f"prompt {self.labels.problems[index].id!r} scores {served:.6f} as it is served, and {score[index]:.6f} "
                    "as it was fitted: this model's states depend on what shares their batch."
                )

    def _gain(self, score: Array, control: Array, solved: Array, groups: NDArray[Any]) -> Bounded:
        """How much higher the AUROC is, on the same prompts."""

        def difference(_: Any, labels: Array, counts: Any = None) -> Any:
            return auroc(score, labels, counts) - auroc(control, labels, counts)

        generator = np.random.default_rng(np.random.SeedSequence([self.settings.seed, 17]))
        return bounded(score_interval(difference, score, solved, groups, generator=generator, draws=DRAWS))

    def _cross(
        self, kind: str, z: NDArray[Any], solved: Array, groups: NDArray[Any], domains: NDArray[Any]
    ) -> dict[str, dict[str, Bounded]]:
        """AUROC of a probe of each domain on the test prompts of each, where there are enough; {} for one domain."""
        name = "mean" if kind == LENGTH else kind
        part = np.array(self.parts)
        able = {
            each: (domains == each) & (part == "fit")
            for each in dict.fromkeys(domains.tolist())
            if large_enough((domains == each) & (part == "fit"), solved, groups)
        }
        tests = {each: (domains == each) & (part == "test") for each in dict.fromkeys(domains.tolist())}
        tests = {each: inside for each, inside in tests.items() if len(np.unique(solved[inside])) == 2}
        if len(able) < 1 or len(tests) < 2:
            return {}
        found: dict[str, dict[str, Bounded]] = {}
        for fitted_on, inside in able.items():
            probe = self._probe(name).fit(z[inside], solved[inside])
            found[fitted_on] = {
                tested: self._ranked(probe.score_prompts(z[other]), solved[other], groups[other])
                for tested, other in tests.items()
            }
        return found

    def _ranked(self, score: Array, solved: Array, groups: NDArray[Any]) -> Bounded:
        generator = np.random.default_rng(np.random.SeedSequence([self.settings.seed, 19]))
        return bounded(score_interval(auroc, score, solved, groups, generator=generator, draws=DRAWS))

    def _write(self, folder: Path | None, scores: Mapping[str, Array], solved: Array) -> None:
        """scores.jsonl: what `route evaluate` measures without a model."""
        if folder is None:
            return
        lines = []
        for place, problem in enumerate(self.labels.problems):
            row = {
                "id": problem.id,
                "prompt": as_row(problem),
                "part": self.parts[place],
                "domain": self.labels.domains[place],
                "group": self.labels.groups[place],
                "weak": self.labels.weak[place],
                "strong": self.labels.strong[place],
                "solved": float(solved[place]),
                "scores": {name: float(score[place]) for name, score in scores.items() if math.isfinite(score[place])},
            }
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomic(folder / SCORES, "".join(lines))


def candidates(kind: str) -> int:
    """From how many scores the saved one is taken on the prompts that its threshold is chosen on."""
    return len(CANDIDATES) if kind == "best" else 1


@contextlib.contextmanager
def features_place(folder: Path | None) -> Iterator[Path]:
    """The folder, or one that goes with the work where nothing is kept."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
