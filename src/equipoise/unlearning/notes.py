"""What a reader of an unlearning run must be told: requests that contradict themselves, runs that did nothing or too much.

Sentences for the first lines of a report; an empty list means that there is nothing of the kind to tell.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from equipoise.core.errors import BadInput
from equipoise.data.records import Record

FEW_MOVED = 0.1  # share of weights: a training that changed fewer was mostly rounded away
FORGOTTEN = 0.05  # nats per token: less is no forgetting that a reader would call so
DESTROYED = 1.0  # nats per token: each token a third as likely as before
HALF = 0.5  # of what a model knew beyond chance
RISEN = 0.1  # of the perplexity: more is general ability lost
AS_MUCH = 0.9  # of what training forgot: noise that gets there forgot as much, give or take the draw of the noise
NAMED = 10  # records that are named; the others are counted


class MeasureLike(Protocol):
    """As the job's measures are. chance: what guessing gets; of: how many items it is a share of; None for neither."""

    @property
    def value(self) -> float: ...
    @property
    def chance(self) -> float | None: ...
    @property
    def of(self) -> int | None: ...


def of_records(sides: Mapping[str, Sequence[Record]]) -> list[str]:
    """Records that stand twice in a side, and, by id, forget records to be kept as well; sides: "forget", "retain", ...

    Two records are one when prompt (or conversation) and completion are, but for white space and case. Raises BadInput where
    every forget record is also to be kept: such a request has no answer. What is only measured may hold it.
    """
    keys = {name: [record_key(record) for record in records] for name, records in sides.items()}
    sentences = []
    for name, own in keys.items():
        if len(own) > len(set(own)):
            sentences.append(f"{name}: {len(own) - len(set(own))} of {len(own)} records stand there more than once.")
    forget = keys["forget"]
    for name in [name for name in keys if name != "forget"]:
        kept = set(keys[name])
        both = [record.id for record, key in zip(sides["forget"], forget, strict=True) if key in kept]
        if len(both) == len(forget) and name == "retain":
            raise BadInput(
                f"Every record of forget ({named(both)}) also stands in {name}: the same cannot be forgotten and kept. "
                f"Take the forget records out of {name}."
            )
        if both:
            does = (
                "they are pushed away and held at once" if name == "retain" else "it measures what should be forgotten"
            )
            sentences.append(
                f"{len(both)} of {len(forget)} forget records also stand in {name} ({named(both)}): {does}."
            )
    return sentences


def named(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{', '.join(ids[:NAMED])}{more}"


def record_key(record: Record) -> tuple[str, ...]:
    """What two records that are one have in common: prompt or conversation, and completion, but for white space and case."""
    before = [turn for message in record.messages[:-1] for turn in (message.role, message.content)] or [record.prompt]
    return tuple(" ".join(part.split()).casefold() for part in (*before, record.completion))


def of_outcome(
    before: Mapping[str, MeasureLike],
    after: Mapping[str, MeasureLike],
    moved: float,
    control: Mapping[str, MeasureLike] | None = None,
) -> list[str]:
    """Whether nothing happened, or what was to be kept is gone. moved: as `training.loop.TrainResult` has it.

    Names of measures are "{side}_accuracy" and "{side}_log_probability" (nats per token): those of forget should fall, and
    those of other sides stay; "{side}_perplexity" should not rise. control: measures of the forget side after a random
    change of equal size (`unlearning.checks`).
    """
    sentences = []
    if moved < FEW_MOVED:
        number = "Not one" if moved == 0 else f"Only {moved:.1%}"
        sentences.append(
            f"{number} of the trained weights changed: the updates are smaller than the distance of neighbouring numbers in "
            "this precision. Use a larger rate, more steps, or dtype float32."
        )
    losses = {name: before[name].value - after[name].value for name in after if name in before}
    forget = [losses[name] for name in ("forget_log_probability", "forget_accuracy") if name in losses]
    if forget and all(loss < FORGOTTEN for loss in forget):
        sentences.append(
            "Nothing was forgotten: the forget set is as likely as it was. Use a larger rate or more steps."
        )
    forgot = losses.get("forget_log_probability", 0.0)
    if control and forgot >= FORGOTTEN:
        start, noise = before["forget_log_probability"], control["forget_log_probability"]
        if not start.value - noise.value < AS_MUCH * forgot:
            sentences.append(
                f"A random change of equal size forgets as much: noise took forget_log_probability from {_shown(start)} to "
                f"{_shown(noise)}, the training to {_shown(after['forget_log_probability'])}. Use a smaller rate or fewer "
                "steps."
            )
    for name in [name for name in losses if name.endswith("_perplexity")]:
        was, now = before[name].value, after[name].value
        if now > was * (1 + RISEN):
            sentences.append(
                f"The perplexity of the {name.removesuffix('_perplexity')} texts rose by {now / was - 1:.0%}, from "
                f"{was:.3g} to {now:.3g}."
            )
    for name, loss in losses.items():
        if name.startswith("forget_"):
            continue
        known = before[name].value - (before[name].chance or 0.0)
        gone = loss > HALF * known > 0 if name.endswith("_accuracy") else not loss <= DESTROYED  # nan, too
        if gone and name.endswith(("_accuracy", "_log_probability")):
            sentences.append(
                f"The model is damaged beyond the forget set: {name} fell from {_shown(before[name])} to "
                f"{_shown(after[name])}{_by_chance(before[name])}. Use a smaller rate, fewer steps, stop_at, or a larger "
                "retain_weight."
            )
    return sentences


def _shown(measure: MeasureLike) -> str:
    return f"{measure.value:.3f}" + (
        "" if measure.of is None else f" ({round(measure.value * measure.of)} of {measure.of})"
    )


def _by_chance(measure: MeasureLike) -> str:
    return "" if measure.chance is None else f", where guessing gets {measure.chance:.2f}"
