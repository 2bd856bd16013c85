"""The work of `audit tools`: traces are read, what entropy says of their calls is measured, and told by tool and by call.

With a model, killed at any moment the same call goes on: entropies.jsonl has a row for each trace that was read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core import progress
from equipoise.core.agreement import share
from equipoise.core.columns import duration
from equipoise.core.errors import BadInput
from equipoise.core.files import seal, sha256_file, write_atomic
from equipoise.core.job import Request
from equipoise.core.rows import Rows
from equipoise.core.secrets import known_secrets, one_line
from equipoise.core.shares import Bounded
from equipoise.core.statistics import auroc, item_interval, score_interval
from equipoise.data.traces import Trace, read_traces
from equipoise.data.verify import check_gold, open_verifier
from equipoise.language.features import objects_digests
from equipoise.language.model import LanguageModel, load
from equipoise.reinforcement import tool_audit_measures as measures
from equipoise.reinforcement import tool_audit_model as by_model
from equipoise.reinforcement.prm_scoring import check_model, name_of
from equipoise.reinforcement.tool_audit_result import (
    ALL,
    LOWERED,
    NOT_LOWERED,
    ChangeAt,
    ToolAudit,
    ToolAuditPlan,
    ToolUse,
    UselessCall,
    several,
)

if TYPE_CHECKING:
    from equipoise.data.verify import Kind
    from equipoise.reinforcement.entropy_tools import Against

CALLS, ENTROPIES = "calls.jsonl", "entropies.jsonl"
VOCABULARY = 300_000
SHOWN = 20  # useless calls
FURTHEST = 12  # steps of a trace whose mean change is told
CHARACTERS = 4  # of a token that nobody counted
RECORDED = "The log-probabilities in the traces."
Row = dict[str, Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ToolAuditing(Request):
    """A request to audit calls, read and found right."""

    traces: tuple[Trace, ...]
    model: str | Path | LanguageModel | None
    vocabulary: int | None
    against: Against
    margin: float
    verifier: Kind
    right_at: float
    loading: Mapping[str, Any]
    seed: int
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        traces: Any,
        model: Any,
        *,
        vocabulary: int | None,
        against: Against,
        margin: float,
        verifier: Kind,
        right_at: float,
        limit: int | None,
        loading: Mapping[str, Any],
        seed: int,
    ) -> ToolAuditing:
        """Raises BadInput for a wrong request; loads no model."""
        if model is not None:
            check_model(model)
        read = tuple(read_traces(traces, limit=limit))
        is_file = isinstance(traces, str | Path)
        named = str(traces) if is_file else f"{len(read)} traces"
        if not any(trace.calls for trace in read):
            raise BadInput(
                f"{named}: no call of a tool in {len(read):,} traces. Calls are an assistant message's tool_calls, or "
                "<tool_call> blocks in its text."
            )
        if model is None:
            _check_recorded(read, named, vocabulary)
        with open_verifier(verifier):  # refused here where it cannot be had
            pass
        for trace in read:
            if trace.score is None and trace.gold:
                try:
                    check_gold(verifier, trace.gold)
                except BadInput as error:
                    raise BadInput(f"{trace.place}: {error} Choose another --verifier.") from None
        return cls(
            traces=read,
            model=model,
            vocabulary=vocabulary,
            against=against,
            margin=margin,
            verifier=verifier,
            right_at=right_at,
            loading=loading,
            seed=seed,
            names={"traces": named} | ({} if model is None else {"model": name_of(model)}),
            inputs=({"traces": sha256_file(Path(traces))} if is_file else {}) | objects_digests({"model": model}),
            resolved={},
        )

    def plan(self) -> ToolAuditPlan:
        counts = {
            "traces": len(self.traces),
            "calls": sum(trace.calls for trace in self.traces),
            "tools": len({call.tool for trace in self.traces for turn in trace.turns for call in turn.calls}),
            "recorded": sum(
                turn.log_probs is not None and len(turn.log_probs) > 0 for t in self.traces for turn in t.turns
            ),
        }
        if self.model is None:
            return ToolAuditPlan(source=RECORDED, tokens=0, seconds=math.nan, **counts)
        language_model, read = self._opened()
        return ToolAuditPlan(
            source=language_model.source,
            tokens=sum(len(each.ids) for each in read),
            seconds=by_model.seconds_for(language_model, read),
            **counts,
        )

    def work(self, folder: Path | None) -> ToolAudit:
        opened = None if self.model is None else self._opened()
        found = self._measured(opened, folder)
        rows = list(_call_rows(self.traces, found))
        if folder is not None:
            write_atomic(folder / CALLS, b"".join(seal(_written(row)) for row in rows))
        return _audit(self, found, rows)

    def scratch(self) -> tuple[str, ...]:
        return (ENTROPIES,)

    def _measured(self, opened: tuple[LanguageModel, list[by_model.ReadTrace]] | None, folder: Path | None) -> Measured:
        """Entropies as logged, or computed anew; the steps; which traces are right."""
        traces, plain, source, tokens, damaged = self.traces, 0, RECORDED, None, ()
        if opened is None:
            sizes = [self.vocabulary or trace.vocabulary or VOCABULARY for trace in traces]
            entropies = measures.recorded(traces, sizes)
        else:
            language_model, read = opened
            rows = Rows(None if folder is None else folder / ENTROPIES)
            left = by_model.left(traces, read, rows)
            if left and not progress.is_quiet():
                told = duration(by_model.seconds_for(language_model, left))
                progress.note(f"One pass for each of {len(left):,} traces: about {told}.")
            entropies = by_model.computed(language_model, traces, read, rows)
            plain, source, damaged = sum(each.plain for each in read), language_model.source, tuple(rows.damaged)
            tokens = _counted(language_model, traces)
        steps = measures.steps_of(traces, entropies, against=self.against, margin=self.margin)
        with open_verifier(self.verifier) as verifier:
            graded = measures.right(traces, verifier, self.right_at)
        return Measured(steps, graded, source, plain, tokens, damaged)

    def _opened(self) -> tuple[LanguageModel, list[by_model.ReadTrace]]:
        assert self.model is not None
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        return language_model, by_model.read_traces_with(language_model, self.traces)


def _check_recorded(traces: Sequence[Trace], named: str, vocabulary: int | None) -> None:
    """Raises BadInput for traces without log-probabilities, and for a vocabulary with fewer tokens than are listed."""
    widths = [
        (trace, turn.log_probs.shape[1]) for trace in traces for turn in trace.turns if turn.log_probs is not None
    ]
    if not any(width for _, width in widths):
        raise BadInput(
            f"{named}: no trace has the log-probabilities of alternatives. Log them (logprobs=True, top_logprobs=20 in "
            "OpenAI's API), or compute entropies with --model, best with the model that wrote the traces."
        )
    for trace, width in widths:
        size = vocabulary or trace.vocabulary or VOCABULARY
        if width > size:
            raise BadInput(
                f"{trace.place}: {width} alternatives of a token, but the vocabulary is {size}: mend --vocabulary."
            )


@dataclass(frozen=True, eq=False)
class Measured:
    """What the traces hold, measured: before anything is told by tool. tokens: of a text, as far as nobody counted them."""

    steps: measures.Steps
    right: list[bool | None]
    source: str
    plain: int
    tokens: Mapping[str, int] | None
    damaged: tuple[str, ...]


def _counted(language_model: LanguageModel, traces: Sequence[Trace]) -> dict[str, int]:
    """The number of tokens of every text, call and reply."""
    every = {text for trace in traces for turn in trace.turns for text in _texts(turn)}
    texts = sorted(every)
    tokenizer: Any = language_model.tokenizer
    ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
    return {text: len(each) for text, each in zip(texts, ids, strict=True)}


def _texts(turn: Any) -> Iterator[str]:
    yield turn.text
    for call in turn.calls:
        yield call.tool + call.arguments
        yield call.reply or ""


def _call_rows(traces: Sequence[Trace], found: Measured) -> Iterator[Row]:
    """A row for each call, in order; nan and None for what is not known."""
    secrets, steps = known_secrets(), found.steps

    def size(text: str) -> float:
        return math.ceil(len(text) / CHARACTERS) if found.tokens is None else found.tokens[text]

    place = 0
    for index, trace in enumerate(traces):
        calling = [turn for turn in trace.turns if turn.calls]
        for turn, again in zip(calling, measures.repeats(trace), strict=True):
            outcome, together = steps.outcome[place], len(turn.calls)
            spoken = size(turn.text) if turn.log_probs is None else len(turn.log_probs)
            for call, repeat in zip(turn.calls, again, strict=True):
                own = size(call.tool + call.arguments)
                generated = spoken / together + own if turn.tokens is None else turn.tokens / together
                useless = outcome == NOT_LOWERED or (repeat is not None and repeat.replied)
                yield {
                    "trace": trace.id,
                    "step": int(steps.number[place]),
                    "tool": call.tool,
                    "arguments": measures.shown_arguments(call, secrets),
                    "outcome": outcome,
                    "together": together,
                    "before": steps.before[place].tolist(),
                    "after": steps.after[place].tolist(),
                    "change": steps.change[place].tolist(),
                    "duplicate": "" if repeat is None else repeat.kind,
                    "duplicate_of": None if repeat is None else repeat.number,
                    "same_reply": None if repeat is None else repeat.replied,
                    "answered": call.reply is not None,
                    "copied": float(steps.copied[place]),
                    "right": found.right[index],
                    "useless": useless,
                    "needless": useless and found.right[index] is True,
                    "call_tokens": own,
                    "reply_tokens": size(call.reply or ""),
                    "turn_tokens": generated,
                    "seconds": _known_sum([turn.seconds / together, call.seconds]),
                    "price": _known_sum([turn.price / together, call.price]),
                    "_index": index,
                    "_place": place,
                }
            place += 1


def _known_sum(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) if known else math.nan


def _written(row: Row) -> Row:
    """As calls.jsonl has it: null for nan."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in row.items() if name[0] != "_"}


def _audit(request: ToolAuditing, found: Measured, rows: Sequence[Row]) -> ToolAudit:
    traces, steps = request.traces, found.steps
    table = _Table(traces, found, rows)
    tools = sorted({row["tool"] for row in rows}, key=lambda tool: (-int(table.of_tool(tool).sum()), tool))
    graded = [each for each in found.right if each is not None]
    counts = {
        "traces": len(traces),
        "right": sum(graded),
        "wrong": len(graded) - sum(graded),
        "ungraded": len(traces) - len(graded),
        "without a call": sum(not trace.calls for trace in traces),
        "calls": len(rows),
        "steps": len(steps.outcome),
        "unanswered": sum(not row["answered"] for row in rows),
        "strays": sum(trace.strays for trace in traces),
        "unreadable": sum(not row["tool"] for row in rows),
        "plain": found.plain,
    }
    calibration, calibrated = table.calibration(request.seed)
    useless = sorted((row for row in rows if row["useless"]), key=_worst)
    outcomes = {word: steps.outcome.count(word) for word in dict.fromkeys(steps.outcome)}
    widths = steps.change[:, 1] - steps.change[:, 0]
    return ToolAudit(
        names=request.names,
        source=found.source,
        against=request.against,
        margin=request.margin,
        counts=counts,
        overall=table.use(ALL, np.ones(len(rows), bool)),
        tools=tuple(table.use(_named(tool), table.of_tool(tool)) for tool in tools),
        path=tuple(change for tool in tools for change in table.path(tool)),
        undecided={word: count for word, count in outcomes.items() if word not in (LOWERED, NOT_LOWERED)},
        width=float(np.nanmean(widths)) if np.isfinite(widths).any() else math.nan,
        calibration=calibration,
        calibrated=calibrated,
        useless=tuple(_useless(row) for row in useless[:SHOWN]),
        useless_count=len(useless),
        estimated=found.tokens is None,
        notes=(*_notes(request, counts), *found.damaged),
    )


def _worst(row: Row) -> tuple[Any, ...]:
    """Calls of right traces first, then by how much speaks against them, then by what they cost."""
    reasons = (row["outcome"] == NOT_LOWERED) + bool(row["duplicate"])
    return not row["needless"], -reasons, -(row["turn_tokens"] + row["reply_tokens"]), row["trace"], row["step"]


def _useless(row: Row) -> UselessCall:
    lower, upper = row["change"]
    return UselessCall(
        trace=one_line(row["trace"]),
        number=row["step"],
        tool=_named(row["tool"]),
        arguments=row["arguments"],
        outcome=row["outcome"],
        change=Bounded((lower + upper) / 2, lower, upper),
        duplicate=row["duplicate"],
        right=row["right"],
        tokens=row["turn_tokens"] + row["reply_tokens"],
    )


def _named(tool: str) -> str:
    return one_line(tool) or "(cannot be read)"


class _Table:
    """Columns of calls [N] and of steps [S], and what they come to for some of the calls."""

    def __init__(self, traces: Sequence[Trace], found: Measured, rows: Sequence[Row]) -> None:
        groups: dict[str, int] = {}
        self.steps = found.steps
        cluster = np.array([groups.setdefault(trace.group, len(groups)) for trace in traces])
        self._tool = np.array([row["tool"] for row in rows], dtype=object)
        self._step = np.array([row["_place"] for row in rows])
        self._clusters = cluster[[row["_index"] for row in rows]]
        self._step_clusters = cluster[found.steps.trace]
        self._right = np.array([row["right"] is True for row in rows])
        self._step_right = np.array([math.nan if each is None else each for each in found.right], float)[
            found.steps.trace
        ]
        self._outcome = np.array(found.steps.outcome)
        self._measured = np.isin(self._outcome, measures.MEASURED)
        self._column = {name: np.array([row[name] for row in rows], float) for name in ("seconds", "price")}
        self._needless = np.array([row["needless"] for row in rows])
        self._tokens = np.array([row["turn_tokens"] + row["reply_tokens"] for row in rows], float)
        self._duplicate = np.array([bool(row["duplicate"]) for row in rows])
        self._answered = np.array([row["answered"] for row in rows])

    def of_tool(self, tool: str) -> Mask:
        return self._tool == tool

    def use(self, tool: str, calls: Mask) -> ToolUse:
        steps = np.unique(self._step[calls])
        outcome = self._outcome[steps]
        decided = steps[np.isin(outcome, (LOWERED, NOT_LOWERED))]
        needless = calls & self._needless
        copied = self.steps.copied[steps]
        return ToolUse(
            tool=tool,
            calls=int(calls.sum()),
            steps=len(steps),
            lowered=share(
                self._outcome[decided] == LOWERED, self._step_clusters[decided], missing=len(steps) - len(decided)
            ),
            change=self._change(steps),
            duplicate=share(self._duplicate[calls], self._clusters[calls]),
            copied=float(np.nanmean(copied)) if np.isfinite(copied).any() else math.nan,
            unanswered=int((calls & ~self._answered).sum()),
            right=int((calls & self._right).sum()),
            anyway=int((calls & self._right & (self._outcome[self._step] == NOT_LOWERED)).sum()),
            needless=int(needless.sum()),
            tokens=float(self._tokens[calls].sum()),
            needless_tokens=float(self._tokens[needless].sum()),
            **{
                f"{prefix}{name}": _known_sum(self._column[name][mask].tolist())
                for name in ("seconds", "price")
                for prefix, mask in (("", calls), ("needless_", needless))
            },
        )

    def path(self, tool: str) -> Iterator[ChangeAt]:
        steps = np.unique(self._step[self.of_tool(tool)])
        steps = steps[self._measured[steps]]
        for number in range(1, FURTHEST + 1):
            some = steps[self.steps.number[steps] == number]
            if len(some):
                yield ChangeAt(_named(tool), number, self._change(some), len(some))

    def calibration(self, seed: int) -> tuple[Bounded, Mapping[str, int]]:
        """AUROC of -D for right against wrong traces; steps whose change is known within bounds, at its middle."""
        some = self._measured & ~np.isnan(self._step_right)
        labels = self._step_right[some]
        counts = {"right": int(labels.sum()), "wrong": int((1 - labels).sum())}
        if not all(counts.values()):
            return Bounded(math.nan, math.nan, math.nan), counts
        fall = -self.steps.change[some].mean(axis=1)
        generator = np.random.default_rng(np.random.SeedSequence([seed, 0]))
        found = score_interval(auroc, fall, labels, self._step_clusters[some], generator=generator)
        return Bounded.of(found), counts

    def _change(self, steps: NDArray[np.int_]) -> Bounded:
        """The mean at the middle of the bounds; its interval reaches from that of the lower to that of the upper ones."""
        some = steps[self._measured[steps]]
        if not len(some):
            return Bounded(math.nan, math.nan, math.nan)
        change, clusters = self.steps.change[some], self._step_clusters[some]
        lower, upper = (item_interval(change[:, side], clusters) for side in (0, 1))
        return Bounded(float(change.mean()), float(lower.lower), float(upper.upper))


def _notes(request: ToolAuditing, counts: Mapping[str, int]) -> tuple[str, ...]:
    """How the numbers are to be read."""
    compared = {
        "previous": "of what was written before it",
        "first": "of what was written before the first call",
        "running-minimum": "that was lowest before it",
    }[request.against]
    said = [
        f"A call lowered uncertainty where the mean entropy of the tokens after its reply is below the one {compared}"
        + (f" by more than {request.margin:g} nats." if request.margin else ".")
        + " Only free text counts, no token of a call or of a reply.",
        "Entropy is confidence, not truth: a wrong or repeated reply can lower it, and one that contradicts can raise it "
        "though it helps. AUROC says whether it went with right answers here; 0.5 is chance.",
        "Calls at once are one step: their effects cannot be told apart. A repeat with another reply (a test run again "
        "after an edit) is counted as a repeat, and not as useless.",
        "Useless calls are those that lowered nothing, or repeat a call with the same reply; needless, those in right "
        "traces. That the trace would have been right without one was not tried.",
    ]
    if request.model is None:
        said += [
            "Of each token the likeliest alternatives are logged, so that its entropy is known within bounds; a step is "
            "decided where they agree. If the server logged probabilities after its temperature, so are the entropies.",
            f"Tokens of calls and replies that nobody counted are estimated, {CHARACTERS} characters to one.",
        ]
    told = {
        "unanswered": ("call", "without a reply"),
        "strays": ("message", "of tools that answer no call and are left out"),
        "unreadable": ("call", "that cannot be read as a tool's name with arguments"),
        "plain": ("trace", "shown without the chat template, which refuses it or leaves something out"),
    }
    found = [f"{several(counts[name], what)} {rest}" for name, (what, rest) in told.items() if counts[name]]
    return (*said, *([f"Found: {'; '.join(found)}."] if found else []))
