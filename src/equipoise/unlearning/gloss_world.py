"""The world of GLOSS's study: ParaDetox divided so that nothing is used twice, a model that is read once, and its edits.

Half of the pairs teach the scorer and are used for nothing else. Of the other half the first are asked about, the same for
every seed: toxic beginnings to continue, and whole sentences whose likelihood is measured. Each seed draws its pairs from
the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.records import Record
from equipoise.data.toxic_pairs import ToxicPair, listed_words, paradetox
from equipoise.language import features
from equipoise.language.encode import Example, encode
from equipoise.language.generate import generate
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import log_likelihoods
from equipoise.unlearning import gloss, toxic_vectors, toxicity
from equipoise.unlearning.detoxifying import FROM
from equipoise.unlearning.value_matrices import ValueMatrix, projected, readout, value_matrices

DIVISION = 17  # of the pairs, the same for every seed
TOKENS = 50  # by which a direction is ranked
LOOKED_AT, TERMS = 20, 8  # removed vectors that are rebuilt, of so many at most
FEATURES = "features"
EditMethod = Literal["gloss", "pooled", "profs", "random", "toxic-vectors", "none"]


@dataclass(frozen=True)
class Division:
    """scorer: what teaches the scorer; asked: what is measured; pool: what a seed draws from."""

    scorer: tuple[ToxicPair, ...]
    asked: tuple[ToxicPair, ...]
    pool: tuple[ToxicPair, ...]


def divide(pairs: Sequence[ToxicPair], asked: int) -> Division:
    """The parts, which share no sentence. Raises BadInput where nothing would be left to draw from."""
    order = np.random.default_rng(DIVISION).permutation(len(pairs))
    first: dict[str, ToxicPair] = {}
    for index in order:  # a sentence that stands twice would be in two parts
        first.setdefault(" ".join(pairs[index].toxic.split()).casefold(), pairs[index])
    every = list(first.values())
    half = len(every) // 2
    parts = Division(tuple(every[:half]), tuple(every[half : half + asked]), tuple(every[half + asked :]))
    if not parts.scorer or not parts.pool:
        raise BadInput(f"{len(every)} pairs are too few to ask about {asked}: ask about fewer, or give more pairs.")
    return parts


def drawn(pool: Sequence[ToxicPair], count: int, seed: int) -> list[ToxicPair]:
    """The pairs of a seed. Raises BadInput for more than there are."""
    if count > len(pool):
        raise BadInput(f"{count} pairs of {len(pool)} that may be drawn: use fewer pairs or prompts.")
    chosen = np.random.default_rng(np.random.SeedSequence([seed, DIVISION])).choice(len(pool), count, replace=False)
    return [pool[index] for index in chosen]


def layers_of(model: Any) -> range:
    """The layers that are edited: from 45 % of the depth upward."""
    depth = len(value_matrices(model))
    return range(int(FROM * depth), depth)


def read(preparation: Any) -> None:
    """Keep the mean activations of the seed's pairs at both sites of every edited layer; goes on where it was stopped."""
    options = preparation.options
    language_model = load(options["model"], chat_template="none")
    pairs = drawn(divide(paradetox(), options["prompts"]).pool, options["pairs"], preparation.seed)
    examples = _sentences(language_model, pairs, options["max_length"])
    places = [f"block.{layer}{site}" for layer in layers_of(language_model.model) for site in (".mlp", "")]
    features.extract(
        language_model,
        [*examples["toxic"], *examples["neutral"]],
        places,
        pool="mean",
        into=preparation.folder / FEATURES,
        dtype="float32",  # means of some states do not fit into float16
    )
    tokens = sum(len(example.input_ids) for side in examples.values() for example in side)
    preparation.spend(phase="build", prompt_tokens=tokens)


@dataclass(frozen=True, eq=False)
class Edit:
    """tensors: by strength what becomes of which parameter. directions: how many were taken out; residual: see the study."""

    tensors: Callable[[float], Mapping[str, Tensor]]
    directions: int
    residual: float


@dataclass(frozen=True, eq=False)
class GlossWorld:
    """A model, its value matrices, the activations of a seed's pairs, and what is asked."""

    language_model: LanguageModel
    options: Mapping[str, Any]
    seed: int
    division: Division
    states: features.Features
    words: tuple[str, ...]

    @cached_property
    def matrices(self) -> list[ValueMatrix]:
        """Of every layer."""
        return value_matrices(self.language_model.model)

    @cached_property
    def scorer(self) -> toxicity.ToxicityScorer:
        """Taught on the half that nothing else touches, without the listed words."""
        pairs = self.division.scorer
        return toxicity.teach_scorer([p.toxic for p in pairs], [p.neutral for p in pairs], words=self.words)

    @cached_property
    def listed(self) -> Tensor:
        """The tokens of listed words, [V] bool."""
        return toxicity.listed_tokens(self.language_model, self.words)[0]

    @cached_property
    def examples(self) -> dict[str, list[Example]]:
        """The sentences that are measured, by side."""
        return _sentences(self.language_model, self.division.asked, self.options["max_length"])

    def sides(self, site: str) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Activations [N, d] by layer, toxic and neutral."""
        ending, count = (".mlp" if site == "mlp" else ""), self.options["pairs"]
        found = {
            layer: torch.from_numpy(np.array(self.states.at(f"block.{layer}{ending}")))
            for layer in layers_of(self.language_model.model)
        }
        return {n: rows[:count] for n, rows in found.items()}, {n: rows[count:] for n, rows in found.items()}

    @closed
    def edit(self, method: EditMethod, site: str, alpha: float = 0.0, centring: gloss.Kept | None = None) -> Edit:
        """The edit of an arm. centring: as `gloss.candidates`."""
        rank = self.options["rank"]
        if method == "none":
            return Edit(lambda strength: {}, 0, float("nan"))
        toxic, neutral = self.sides(site)
        if method == "toxic-vectors":
            return self._without_vectors(toxic, neutral, rank)
        found = gloss.candidates(
            toxic,
            neutral,
            self.options["candidates"],
            method=method,
            unembedding=readout(self.language_model) if method == "gloss" else None,
            listed=self.listed if method == "gloss" else None,
            tokens=min(TOKENS, self.language_model.vocabulary),
            alpha=alpha,
            centring=centring,
        )
        bases: dict[int, Tensor] = gloss.bases(found, method, rank, seed=self.seed)
        last = next(each for each in self.matrices if each.layer == max(bases))
        basis = bases[last.layer]
        outside = gloss.project(last.values.T.double(), basis, transposed=True)
        residual = toxic_vectors.rebuilding_residual(basis, outside, TERMS).mean().item()
        return Edit(lambda strength: projected(self.matrices, bases, strength), rank, residual)

    def _without_vectors(self, toxic: Mapping[int, Tensor], neutral: Mapping[int, Tensor], rank: int) -> Edit:
        """As many vectors are set to zero as the others take out directions in all layers together, times ten.

        A vector is one of f in its layer and a direction one of d, so that a few vectors of a layer change nothing; ten for
        each direction are 500 in ten layers at rank 5, the number that was published for larger models.
        """
        layers = layers_of(self.language_model.model)
        probe = toxic_vectors.probe_direction(toxic[layers[-1]], neutral[layers[-1]])
        edited = {each.layer: each for each in self.matrices if each.layer in layers}
        values = {layer: each.values for layer, each in edited.items()}
        total = sum(each.shape[1] for each in values.values())
        chosen = toxic_vectors.toxic_vectors(values, probe, min(10 * rank * len(layers), total // 2))
        layer = max(chosen, key=lambda each: len(chosen[each]))
        vectors = values[layer].T.double()
        left = torch.ones(len(vectors), dtype=torch.bool)
        left[chosen[layer]] = False
        residual = toxic_vectors.rebuilding_residual(vectors[~left][:LOOKED_AT], vectors[left], TERMS).nanmean().item()

        def tensors(strength: float) -> dict[str, Tensor]:
            found = {}
            for layer, columns in chosen.items():
                weight = edited[layer].weight.detach()
                bare = toxic_vectors.without(weight, columns, transposed=edited[layer].transposed)
                found[edited[layer].name] = weight + strength * (bare - weight)
            return found

        return Edit(tensors, rank, residual)

    def measure(self, run: Any, strength: float) -> None:
        """Measures the model as it is now into `run`, item by item."""
        asked, at = self.division.asked, {"strength": strength}
        self._toxicity(run, "toxicity", [toxicity.first_half(pair.toxic) for pair in asked], strength)
        mass = toxicity.listed_mass(self.language_model, self.examples["toxic"], self.listed)
        run.items("listed_mass", [pair.id for pair in asked], mass.tolist(), at=at, where={"split": "test"})
        for side, outcome in (("neutral", "neutral_loss"), ("toxic", "toxic_loss")):
            sums, counts = log_likelihoods(self.language_model, self.examples[side])
            run.items(outcome, [pair.id for pair in asked], (-sums / counts).tolist(), at=at, where={"split": "test"})

    def attack(self, run: Any, strength: float) -> None:
        """The same prompts, each behind the whole toxic sentence of the next one."""
        pairs = self.division.asked
        leading = [*pairs[1:], pairs[0]]
        asked = [f"{a.toxic} {toxicity.first_half(b.toxic)}" for a, b in zip(leading, pairs, strict=True)]
        self._toxicity(run, "attacked_toxicity", asked, strength)

    def _toxicity(self, run: Any, outcome: str, prompts: list[str], strength: float) -> None:
        new = self.options["max_new_tokens"]
        scores = self.scorer(generate(self.language_model, prompts, max_new_tokens=new))
        # Where nothing was written there is nothing toxic; leaving these out would compare arms on other prompts.
        scores = np.where(np.isnan(scores), 0.0, scores)
        ids = [pair.id for pair in self.division.asked]
        run.items(outcome, ids, scores.tolist(), at={"strength": strength}, where={"split": "test"})


def open_world(options: Mapping[str, Any], seed: int, prepared: Path) -> GlossWorld:
    """What an arm of this seed works on; prepared: where `read` kept the activations."""
    return GlossWorld(
        language_model=load(options["model"], chat_template="none"),
        options=options,
        seed=seed,
        division=divide(paradetox(), options["prompts"]),
        states=features.Features.load(prepared / FEATURES),
        words=tuple(listed_words()),
    )


def _sentences(language_model: LanguageModel, pairs: Sequence[ToxicPair], max_length: int) -> dict[str, list[Example]]:
    return {
        side: encode(
            language_model,
            [Record(f"{pair.id} ({side})", getattr(pair, side)) for pair in pairs],
            max_length=max_length,
            end=False,
        )
        for side in ("toxic", "neutral")
    }
