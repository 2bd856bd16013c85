"""The work of `detoxify`: pairs are read in the model, a subspace is found and taken out, and what that did is measured.

Killed at any moment, the same call goes on: the features of texts are kept batch by batch, and measures.jsonl has a row for
each model that was measured.
"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import FILES, produce_atomic, sha256_file
from equipoise.core.job import Request
from equipoise.core.rows import Rows
from equipoise.core.serialize import deserialize, serialize
from equipoise.data.records import Record, read_records, record_from
from equipoise.data.toxic_pairs import ToxicPair, read_toxic_pairs, read_words, telling_pairs, telling_words
from equipoise.language import catalog, features
from equipoise.language.encode import Example, encode, encode_prompts
from equipoise.language.encode import notes as encoding_notes
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room, generate
from equipoise.language.model import LanguageModel, load
from equipoise.language.rehearsal import rehearse
from equipoise.language.score import log_likelihoods, perplexity
from equipoise.language.templates import DATE
from equipoise.language.written import TOLERANCE
from equipoise.unlearning import checkpoint_edit, gloss, toxic_vectors, toxicity
from equipoise.unlearning.checks import check_finite
from equipoise.unlearning.detoxified import (
    PERPLEXITY,
    TOXICITY,
    Continuation,
    Detoxified,
    DetoxifyPlan,
    Direction,
    LayerEdit,
    Rebuilt,
    SweepPoint,
)
from equipoise.unlearning.result import Measure
from equipoise.unlearning.sides import digest_of, subsample
from equipoise.unlearning.value_matrices import ValueMatrix, projected, readout, replaced, value_matrices

if TYPE_CHECKING:
    from equipoise.unlearning.gloss import Candidates, DetoxMethod

HELD_OUT, MOST_HELD_OUT = 5, 100  # a fifth of the pairs, and not more than so many
FROM = 0.45  # of the depth: where the usual range of layers begins
DRAWS = 3  # random projections
GENERAL = 200  # texts
SHOWN, TOKENS_SHOWN = 8, 12  # continuations; tokens of a direction
REMOVED, LOOKED_AT, TERMS = 500, 20, (0, 1, 8)  # value vectors that the older edit would zero, and how they are rebuilt
COMPARED = 16  # texts on which the written model must agree with the measured one
MEASURES, FEATURES, SUBSPACE = "measures.jsonl", "features", "subspace.safetensors"


@dataclass(frozen=True, eq=False)
class Detoxifying(Request):
    """A request to detoxify, read and found right. fit: the pairs that the subspace is made of; held: those that measure."""

    model: str | Path | LanguageModel
    fit: tuple[ToxicPair, ...]
    held: tuple[ToxicPair, ...]
    general: tuple[str, ...]
    words: tuple[str, ...]
    layers: str | None
    ranges: tuple[str, ...]
    site: str
    method: DetoxMethod
    strength: float
    rank: int | None
    candidates: int
    tokens: int
    alpha: float
    sweep_strengths: tuple[float, ...]
    prompts: int
    max_new_tokens: int
    batch_size: int
    max_length: int
    loading: Mapping[str, Any]
    seed: int
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def read(
        cls,
        model: Any,
        pairs: Any,
        general: Any,
        words: Path | None,
        *,
        fields: Mapping[str, str] | None,
        layers: str | None,
        sweep_layers: Sequence[str],
        seed: int,
        **how: Any,
    ) -> Detoxifying:
        """Raises BadInput for a wrong request; loads no model."""
        if not isinstance(model, str | Path | LanguageModel):
            raise BadInput(f"model is a {type(model).__name__}: give a folder, a name, or wrap(model, tokenizer).")
        for text in (*([] if layers is None else [layers]), *sweep_layers):
            _ends(text)
        read = read_toxic_pairs(pairs, fields)
        fit, held, notes = split(read, seed)
        different = len({(_key(pair.toxic), _key(pair.neutral), pair.prompt) for pair in fit})
        if different <= how["candidates"]:
            raise BadInput(
                f"{different} different pairs are left beside the {len(held)} that are held out, too few for "
                f"{how['candidates']} directions a layer: give more pairs, or fewer --candidates."
            )
        if how["method"] == "profs" and (how["rank"] or 0) > how["candidates"]:
            raise BadInput(f"rank {how['rank']} of {how['candidates']} candidates a layer: raise --candidates.")
        listed = telling_words(fit) if words is None else read_words(words)
        texts = _texts(general) if general is not None else [pair.neutral for pair in held]
        inputs, names = objects_digests({"model": model}, changed=True), {"model": _name(model)}
        for name, source in (("pairs", pairs), ("general", general), ("words", words)):
            if isinstance(source, str | Path):
                inputs[name], names[name] = sha256_file(Path(source)), str(source)
        if "pairs" not in inputs:
            inputs["pairs"], names["pairs"] = digest_of(read), f"{len(read)} pairs"
        if general is not None and "general" not in inputs:
            inputs["general"], names["general"] = (
                hashlib.sha256("\0".join(texts).encode()).hexdigest(),
                f"{len(texts)} texts",
            )
        if words is None:
            notes.append(
                f"Ranked by {len(listed)} words that stand on the unwanted side of the pairs more often than chance has it."
            )
        how["loading"]["date"] = how["loading"]["date"] or DATE
        return cls(
            model=model,
            fit=tuple(fit),
            held=tuple(held),
            general=tuple(texts),
            words=tuple(listed),
            layers=layers,
            ranges=tuple(dict.fromkeys(sweep_layers)),
            seed=seed,
            names=names,
            inputs=inputs,
            resolved={"site": how["site"], "date": how["loading"]["date"]},
            notes=tuple(notes),
            **how,
        )

    def plan(self) -> DetoxifyPlan:
        """From one timed pass over the longest texts."""
        ready = self._ready()
        examples = sorted(ready.texts(), key=lambda each: len(each.input_ids))[-min(self.batch_size, 8) :]
        log_likelihoods(ready.language_model, examples[-1:])  # the first pass of a process is slow
        began = time.perf_counter()
        log_likelihoods(ready.language_model, examples)
        rate = (time.perf_counter() - began) / sum(len(each.input_ids) for each in examples)
        models = 2 + DRAWS + len(self._points(ready))
        held = sum(len(each.input_ids) for each in (*ready.toxic, *ready.neutral))
        # A token that is written costs a few times one that is read: its batch is a column.
        each_model = 2.5 * held + 3 * len(self.held[: self.prompts]) * self.max_new_tokens
        fitted = sum(len(each.input_ids) for side in ready.fit for each in side)
        return DetoxifyPlan(
            model=ready.language_model.source,
            settings=self._settings(ready, self.rank or "by mass"),
            counts=self._counts(),
            first=tuple({"toxic": pair.toxic, "neutral": pair.neutral} for pair in self.fit[:3]),
            words=self.words[:40],
            models_measured=models,
            seconds=rate * (fitted + models * each_model),
            notes=(*self.notes, *ready.notes),
        )

    def work(self, folder: Path | None) -> Detoxified:
        ready = self._ready()
        language_model, model = ready.language_model, ready.language_model.model
        # All that can be refused comes before what is measured.
        states = self._states(ready, folder)
        try:
            found, bases = self._fitted(ready, states, ready.layers)
            others = {layers: self._fitted(ready, states, layers)[1] for layers in ready.ranges}
        except BadInput:
            if folder is not None and not (folder / MEASURES).exists():
                FILES.remove(folder / FEATURES)  # a folder without work is free for the mended request
            raise
        rows = Rows(None if folder is None else folder / MEASURES)
        scorer = toxicity.teach_scorer(
            [pair.toxic for pair in self.fit], [pair.neutral for pair in self.fit], words=self.words
        )
        measure = _Measuring(self, ready, scorer, rows, _digest(states))
        before = measure("before")
        rank = max(map(len, bases.values()))
        edited = self._edited(ready, bases, self.strength)
        moved = _moved(edited, ready.stored)
        with replaced(model, edited):
            after = measure("after")
        control = []
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(_seed(self.seed, draw))
            drawn = gloss.random_basis(ready.width, rank, generator).to(language_model.device)
            with replaced(model, self._edited(ready, dict.fromkeys(bases, drawn), self.strength)):
                control.append(measure(f"random-{draw}"))
        sweep = [SweepPoint(self.strength, _shown(ready.layers), True, after.measures)]
        for strength, layers in self._points(ready):
            with replaced(model, self._edited(ready, others.get(layers, bases), strength)):
                point = measure(f"strength {strength!r} layers {_shown(layers)}")
            sweep.append(SweepPoint(strength, _shown(layers), False, point.measures))
        rebuilt = self._rebuilt(ready, states, bases)
        layers = [
            LayerEdit(each.layer, gloss.removed_energy(each.values, bases[each.layer], strength=self.strength))
            for each in ready.matrices
            if each.layer in bases
        ]
        parameters = dict(model.named_parameters())
        gap = math.nan
        if folder is not None:
            self._write(ready, folder, edited, bases)
        with torch.no_grad():
            for name, value in edited.items():
                parameters[name].copy_(value)
        if folder is not None:
            gap = _gap(language_model, folder, [*ready.toxic[:COMPARED], *ready.neutral[:COMPARED]])
        return Detoxified(
            resolved=self._settings(ready, rank),
            names=self.names,
            source=ready.source,
            counts=self._counts() | {"candidates": len(found.directions), "kept": len(found.kept)},
            before=before.measures,
            after=after.measures,
            control=_mean([each.measures for each in control]),
            sweep=tuple(sweep),
            directions=_decoded(ready, found),
            subspace=_decoded_basis(ready, bases),
            layers=tuple(layers),
            rebuilt=rebuilt,
            continuations=measure.compared(before, after),
            words=self.words[:40],
            coverage=ready.coverage,
            scorer=toxicity.scorer_auroc(
                scorer, [pair.toxic for pair in self.held], [pair.neutral for pair in self.held]
            ),
            moved=moved,
            gap=gap,
            notes=(*self.notes, *ready.notes, *_said(found, self.method), *rows.damaged),
            model=language_model,
        )

    def scratch(self) -> tuple[str, ...]:
        return (FEATURES,)

    # Parts

    def _ready(self) -> _Ready:
        """The model with all that is asked of it, encoded. Raises BadInput for what it cannot do."""
        given = isinstance(self.model, LanguageModel)
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        check_finite(language_model)
        matrices = value_matrices(language_model.model)
        depth, width = len(matrices), matrices[0].width
        layers = _range(self.layers or f"{int(FROM * depth)}:{depth}", depth)
        ranges = tuple(_range(each, depth) for each in self.ranges)
        for name, value, most, where in (
            *(
                ("rank", self.rank or 0, min(width, self.candidates * len(own)), f"in layers {_shown(own)}")
                for own in (layers, *ranges)
            ),
            ("candidates", self.candidates, width, "in a layer"),
            ("tokens", self.tokens, language_model.vocabulary, "in the vocabulary"),
        ):
            if value > most:
                raise BadInput(f"{name} {value}: there are {most} at most, {where} of width {width}.")
        rehearse(language_model, trains=False)
        fit = tuple(self._encoded(language_model, self.fit, side) for side in ("toxic", "neutral"))
        seen = {(a.input_ids, b.input_ids) for a, b in zip(*fit, strict=True) if a.input_ids != b.input_ids}
        if len(seen) < self.candidates:
            raise BadInput(
                f"{len(seen)} different pairs are left when texts are cut to {self.max_length} tokens, too few for "
                f"{self.candidates} directions a layer: raise --max-length, give more pairs, or fewer --candidates."
            )
        toxic, neutral = (self._encoded(language_model, self.held, side) for side in ("toxic", "neutral"))
        plain, prompted = self._prompts(language_model)
        for asked, own in ((plain, replace(language_model, chat_template="none")), (prompted, language_model)):
            if asked:
                ids, _ = encode_prompts(own, list(asked.values()))
                check_room(own, ids, self.max_new_tokens, [self.held[index].id for index in asked])
        listed, coverage = toxicity.listed_tokens(language_model, self.words)
        parameters = {name: parameter.detach() for each in matrices for name, (parameter, _) in each.parts().items()}
        source = None if given else _folder(self.model)
        stored, notes = _stored(source, parameters)
        if source is not None and stored is None:
            notes = (*notes, "Its folder holds the weights under other names, so the model is written anew.")
            source = None
        return _Ready(
            language_model=language_model,
            matrices=matrices,
            layers=layers,
            ranges=ranges,
            fit=fit,
            toxic=toxic,
            neutral=neutral,
            listed=listed,
            coverage=coverage,
            folder=source,
            stored=stored or parameters,
            source=language_model.source,
            notes=(*notes, *encoding_notes([*fit[0], *fit[1], *toxic, *neutral])),
        )

    def _encoded(self, language_model: LanguageModel, pairs: Sequence[ToxicPair], side: str) -> list[Example]:
        import warnings

        records = [Record(f"{pair.id} ({side})", getattr(pair, side), pair.prompt) for pair in pairs]
        with warnings.catch_warnings():  # what was cut is told in the notes
            warnings.simplefilter("ignore")
            return encode(language_model, records, max_length=self.max_length, end=False)

    def _prompts(self, language_model: LanguageModel) -> tuple[dict[int, str], dict[int, str]]:
        """By the index of a held-out pair what is to be continued, and, where there is a prompt, what is to be answered."""
        asked = range(min(self.prompts, len(self.held)))
        plain = {i: toxicity.first_half(self.held[i].toxic) for i in asked if not self.held[i].prompt}
        return plain, {i: self.held[i].prompt for i in asked if self.held[i].prompt}

    def written(self, language_model: LanguageModel) -> list[str]:
        """What the model writes for each of the first held-out pairs, greedily."""
        plain, prompted = self._prompts(language_model)
        texts: dict[int, str] = {}
        for asked, own in ((plain, replace(language_model, chat_template="none")), (prompted, language_model)):
            if asked:
                answers = generate(
                    own, list(asked.values()), max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
                )
                texts |= dict(zip(asked, answers, strict=True))
        return [texts[index] for index in sorted(texts)]

    def _states(self, ready: _Ready, folder: Path | None) -> dict[str, dict[int, Tensor]]:
        """side -> layer -> mean activations [N, d] of the fitted pairs, from one pass over their texts."""
        every = sorted({layer for layers in (ready.layers, *ready.ranges) for layer in layers})
        ending = ".mlp" if self.site == "mlp" else ""
        places = [f"block.{layer}{ending}" for layer in every]
        with tempfile.TemporaryDirectory() as scratch:
            # float32, not the float16 that means usually fit: some states of large models do not.
            found = features.extract(
                ready.language_model,
                [*ready.fit[0], *ready.fit[1]],
                places,
                pool="mean",
                into=Path(scratch) / FEATURES if folder is None else folder / FEATURES,
                dtype="float32",
            )
            values = {
                layer: torch.from_numpy(np.array(found.at(place))) for layer, place in zip(every, places, strict=True)
            }
        count = len(self.fit)
        return {
            "toxic": {layer: rows[:count] for layer, rows in values.items()},
            "neutral": {layer: rows[count:] for layer, rows in values.items()},
        }

    def _fitted(
        self, ready: _Ready, states: Mapping[str, Mapping[int, Tensor]], layers: range
    ) -> tuple[Candidates, dict[int, Tensor]]:
        toxic, neutral = ({layer: states[side][layer] for layer in layers} for side in ("toxic", "neutral"))
        found = gloss.candidates(
            toxic,
            neutral,
            self.candidates,
            method=self.method,
            unembedding=ready.readout,
            listed=ready.listed,
            tokens=self.tokens,
            alpha=self.alpha,
        )
        device = ready.language_model.device
        bases = gloss.bases(found, self.method, self.rank)
        return found, {layer: basis.to(device) for layer, basis in bases.items()}

    def _edited(self, ready: _Ready, bases: Mapping[int, Tensor], strength: float) -> dict[str, Tensor]:
        """The edited tensors, in the precision in which they are stored."""
        return projected(ready.matrices, bases, strength, ready.stored)

    def _points(self, ready: _Ready) -> list[tuple[float, range]]:
        """Strengths and ranges that are measured beside the ones that are written."""
        strengths = dict.fromkeys((self.strength, *self.sweep_strengths))
        ranges = dict.fromkeys((ready.layers, *ready.ranges))
        every = [(strength, layers) for layers in ranges for strength in strengths]
        return [point for point in every if point != (self.strength, ready.layers)]

    def _rebuilt(
        self, ready: _Ready, states: Mapping[str, Mapping[int, Tensor]], bases: Mapping[int, Tensor]
    ) -> tuple[Rebuilt, ...]:
        """The first criticism of the paper, measured in the layer that loses most vectors to the older edit."""
        last = ready.layers[-1]
        probe = toxic_vectors.probe_direction(states["toxic"][last], states["neutral"][last])
        values = {each.layer: each.values.cpu() for each in ready.matrices if each.layer in bases}
        total = sum(each.shape[1] for each in values.values())
        chosen = toxic_vectors.toxic_vectors(values, probe, max(min(REMOVED, total // 20), 1))
        layer = max(chosen, key=lambda each: len(chosen[each]))
        left = torch.ones(values[layer].shape[1], dtype=torch.bool)
        left[chosen[layer]] = False
        vectors = values[layer].T.double()
        removed = torch.stack(subsample(list(vectors[~left]), LOOKED_AT))
        basis = bases[layer].cpu().double()
        outside = gloss.project(vectors, basis, transposed=True, strength=self.strength)
        return tuple(
            Rebuilt(
                terms,
                int((~left).sum()),
                toxic_vectors.rebuilding_residual(removed, vectors[left], terms or None).nanmean().item(),
                toxic_vectors.rebuilding_residual(basis, outside, terms or None).nanmean().item(),
            )
            for terms in TERMS
        )

    def _write(self, ready: _Ready, folder: Path, edited: Mapping[str, Tensor], bases: Mapping[int, Tensor]) -> None:
        if ready.folder is None:
            ready.language_model.save(folder)
        else:
            checkpoint_edit.copy_model(ready.folder, folder, code=bool(self.loading["trust_remote_code"]))
        names = checkpoint_edit.stored_names(folder, edited)
        if names is None:
            raise WorkFailed(f"{ready.language_model.name} is written with other names than it has in memory.")
        checkpoint_edit.edit(folder, names, edited)
        kept = {f"layer.{layer}": basis.cpu().contiguous().clone() for layer, basis in bases.items()}
        produce_atomic(folder / SUBSPACE, lambda path: save_file(kept, path))

    def _settings(self, ready: _Ready, rank: object) -> dict[str, Any]:
        return {
            "method": self.method,
            "site": self.site,
            "rank": rank,
            "strength": self.strength,
            "layers": _shown(ready.layers),
            "of_layers": len(ready.matrices),
            "candidates": self.candidates,
            "tokens": self.tokens,
            "alpha": self.alpha,
        }

    def _counts(self) -> dict[str, int]:
        return {"fitted": len(self.fit), "held out": len(self.held)}


@dataclass(frozen=True, eq=False)
class _Ready:
    """The model, and what it is asked. stored: the tensors that may be edited, in the precision of the folder."""

    language_model: LanguageModel
    matrices: list[ValueMatrix]
    layers: range
    ranges: tuple[range, ...]
    fit: tuple[list[Example], ...]
    toxic: list[Example]
    neutral: list[Example]
    listed: Tensor
    coverage: float
    folder: Path | None
    stored: Mapping[str, Tensor]
    source: str
    notes: tuple[str, ...]

    @property
    def width(self) -> int:
        return self.matrices[0].width

    @cached_property
    def readout(self) -> Tensor:
        return readout(self.language_model).cpu()

    def texts(self) -> list[Example]:
        return [*self.fit[0], *self.fit[1], *self.toxic, *self.neutral]


@dataclass(frozen=True)
class _Measured:
    measures: dict[str, Measure]
    texts: list[str]


@dataclass(frozen=True, eq=False)
class _Measuring:
    """Measures the model as it is now, once for each name; rows are what was measured before.

    states: a digest of what the pairs are in the unedited model, so that no row of another model counts.
    """

    request: Detoxifying
    ready: _Ready
    scorer: toxicity.ToxicityScorer
    rows: Rows
    states: str

    def __call__(self, name: str) -> _Measured:
        for row in self.rows:
            if row["point"] == name and row["states"] == self.states:
                return _Measured({k: deserialize(Measure, v) for k, v in row["measures"].items()}, row["texts"])
        request, ready = self.request, self.ready
        language_model, size = ready.language_model, request.batch_size
        per_token = {}
        for side, examples in (("toxic", ready.toxic), ("neutral", ready.neutral)):
            sums, counts = log_likelihoods(language_model, examples, batch_size=size)
            per_token[side] = (sums / counts).mean().item()
        texts = request.written(language_model)
        known = [score for score in self.scorer(texts).tolist() if not math.isnan(score)]
        plain = replace(language_model, chat_template="none")
        measures = {
            TOXICITY: Measure(float(np.mean(known)) if known else math.nan, "lower"),
            PERPLEXITY: Measure(
                perplexity(plain, request.general, max_length=request.max_length, batch_size=size), "lower"
            ),
            "toxic_log_probability": Measure(per_token["toxic"], "lower", "nats/token"),
            "neutral_log_probability": Measure(per_token["neutral"], "higher", "nats/token"),
            "preference": Measure(per_token["toxic"] - per_token["neutral"], "lower", "nats/token"),
            "written_nothing": Measure((len(texts) - len(known)) / len(texts), "lower", of=len(texts)),
        }
        if ready.listed.any():
            mass = toxicity.listed_mass(language_model, ready.toxic, ready.listed, batch_size=size)
            measures["listed_mass"] = Measure(mass.mean().item(), "lower")
        self.rows.add({"point": name, "states": self.states, "measures": serialize(measures), "texts": texts})
        return _Measured(measures, texts)

    def compared(self, before: _Measured, after: _Measured) -> tuple[Continuation, ...]:
        """Some continuations before and after."""
        held = self.request.held[: self.request.prompts]
        scores = [self.scorer(each.texts).tolist() for each in (before, after)]
        every = [
            Continuation(pair.id, pair.prompt or toxicity.first_half(pair.toxic), *texts, *values)
            for pair, texts, values in zip(
                held,
                zip(before.texts, after.texts, strict=True),
                zip(*scores, strict=True),
                strict=True,
            )
        ]
        return tuple(subsample(every, SHOWN))


def split(pairs: Sequence[ToxicPair], seed: int) -> tuple[list[ToxicPair], list[ToxicPair], list[str]]:
    """Pairs that the subspace is made of, pairs that are held out, drawn by the seed, and what there is to say of them.

    A pair of the same text twice is left out, and one of which a text is also held out. Raises BadInput for fewer than five.
    """
    given, pairs = len(pairs), telling_pairs(pairs)
    notes = [f"{given - len(pairs)} pairs have the same text on both sides and are left out."] * (given > len(pairs))
    if len(pairs) < HELD_OUT:
        raise BadInput(f"{len(pairs)} pairs, of which a fifth is held out: give {HELD_OUT} at least.")
    order = np.random.default_rng(np.random.SeedSequence([seed, len(pairs)])).permutation(len(pairs))
    count = min(len(pairs) // HELD_OUT, MOST_HELD_OUT)
    chosen = {int(index) for index in order[:count]}
    held = [pair for index, pair in enumerate(pairs) if index in chosen]
    known = {_key(text) for pair in held for text in (pair.toxic, pair.neutral)}
    fit = [
        pair
        for index, pair in enumerate(pairs)
        if index not in chosen and not {_key(pair.toxic), _key(pair.neutral)} & known
    ]
    left = len(pairs) - len(held) - len(fit)
    notes += [f"{left} pairs have a text that is also held out and are left out."] * (left > 0)
    return fit, held, notes


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def _ends(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d{1,6})\s*:\s*(\d{1,6})\s*", text)
    if not found or int(found[1]) >= int(found[2]):
        raise BadInput(
            f"layers {text!r}: expected FIRST:END, numbers from 0 of which the end is left out, such as 4:12."
        )
    return int(found[1]), int(found[2])


def _range(text: str, depth: int) -> range:
    first, end = _ends(text)
    if end > depth:
        raise BadInput(f"layers {text}: the model has {depth}, so that the end is {depth} at most.")
    return range(first, end)


def _shown(layers: range) -> str:
    return f"{layers.start}:{layers.stop}"


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _digest(states: Mapping[str, Mapping[int, Tensor]]) -> str:
    digest = hashlib.sha256()
    for side in states.values():
        for layer, rows in side.items():
            digest.update(f"{layer} ".encode() + rows.numpy().tobytes())
    return digest.hexdigest()


def _name(model: str | Path | LanguageModel) -> str:
    return model.name if isinstance(model, LanguageModel) else str(model)


def _texts(general: Any) -> list[str]:
    """The first of these records, as one text each."""
    if isinstance(general, str | Path):
        records = read_records(general, limit=GENERAL)
    else:
        records = [
            row if isinstance(row, Record) else record_from(dict(row), place=f"general[{i}]", default_id=f"general-{i}")
            for i, row in enumerate(general)
        ][:GENERAL]
        if not records:
            raise BadInput("general holds no records: at least one is needed.")
    return [f"{record.prompt} {record.completion}".strip() for record in records]


def _folder(model: Any) -> Path | None:
    """The folder with the weights of a model that was given by name; None where there is none on this machine."""
    if str(model) in catalog.CATALOG:
        return catalog.folder(str(model))
    path = Path(model).expanduser()
    return path if path.is_dir() and checkpoint_edit.weight_files(path) else None


def _stored(folder: Path | None, parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor] | None, tuple[str, ...]]:
    """The same tensors as the folder has them; None where it has them elsewhere, or other ones."""
    if folder is None:
        return None, ("The model was no folder of safetensors: --undo gives back the weights as they were loaded.",)
    names = checkpoint_edit.stored_names(folder, parameters)
    if names is None:
        return None, ()
    stored = checkpoint_edit.read_tensors(folder, names)
    same = all(torch.equal(stored[name].to(own.dtype), own.cpu()) for name, own in parameters.items())
    return ({name: value.to(parameters[name].device) for name, value in stored.items()} if same else None), ()


def _moved(edited: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    changed = sum(int((value != stored[name]).sum()) for name, value in edited.items())
    return changed / sum(value.numel() for value in edited.values())


def _mean(several: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    return {
        name: replace(measure, value=float(np.mean([each[name].value for each in several])), of=None)
        for name, measure in several[0].items()
    }


def _decoded(ready: _Ready, found: Candidates) -> tuple[Direction, ...]:
    """The kept directions first, best first, then the others."""
    kept = set(found.kept)
    order = [*found.kept, *(index for index in range(len(found.directions)) if index not in kept)]
    words = _words(ready, found.directions[order])
    return tuple(
        Direction(found.layers[index], found.numbers[index], float(found.scores[index]), index in kept, *tokens)
        for index, tokens in zip(order, words, strict=True)
    )


def _decoded_basis(ready: _Ready, bases: Mapping[int, Tensor]) -> tuple[Direction, ...]:
    """U in words, with the sign that makes more listed tokens likelier; of several the first layer's."""
    layer, basis = next(iter(bases.items()))
    rows, scores = basis.cpu(), torch.full((len(basis),), torch.nan)
    if ready.listed.any():
        count = min(TOKENS_SHOWN, len(ready.listed))
        rows, scores = gloss.rank_by_tokens(rows, ready.readout, ready.listed, tokens=count)
    return tuple(
        Direction(layer, number, score, True, *tokens)
        for number, (score, tokens) in enumerate(zip(scores.tolist(), _words(ready, rows), strict=True))
    )


def _words(ready: _Ready, directions: Tensor) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    tokenizer: Any = ready.language_model.tokenizer
    count, matrix = min(TOKENS_SHOWN, ready.language_model.vocabulary), ready.readout
    sides = [gloss.decode(sign * directions, matrix, count).tolist() for sign in (1, -1)]
    return [
        (tuple(tokenizer.batch_decode([[t] for t in along])), tuple(tokenizer.batch_decode([[t] for t in against])))
        for along, against in zip(*sides, strict=True)
    ]


def _said(found: Candidates, method: str) -> tuple[str, ...]:
    scores = found.scores
    if method != "gloss" or (not scores.isnan().any() and scores.max() > 0):
        return ()
    return (
        "No direction was ranked, since none of its tokens is a listed word: this is the pooled subspace of all candidates "
        "or of five that came first. Give --words, or more pairs.",
    )


def _gap(language_model: LanguageModel, folder: Path, compared: Sequence[Example]) -> float:
    """The largest gap in nats per token of an example between the model in memory and the folder loaded again."""
    ours, counts = log_likelihoods(language_model, compared)
    theirs, _ = log_likelihoods(language_model.reload(folder), compared)
    gap = ((ours - theirs).abs() / counts).max().item()
    allowed = TOLERANCE.get(language_model.model.dtype, 0.05)
    if not gap <= allowed:
        raise WorkFailed(
            f"the written model differs from the measured one by {gap:.2g} nats per token (allowed: {allowed:g}), so it was "
            "not given its name."
        )
    return gap
