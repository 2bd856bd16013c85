"""The job: which biases fool this judge, by how much, with the evidence; a harder test set and a preference file.

Every call is in the folder's record as soon as it is answered, so that the same command goes on after a kill, asks nothing
twice, and can be replayed offline.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from equipoise.chat.account import Account, Budget, Planned, estimate
from equipoise.chat.client import SECRET_NAME, Chat, resolve
from equipoise.chat.record import Record
from equipoise.core.errors import BadInput, BudgetReached, MissingExtra, WorkFailed, did_you_mean
from equipoise.core.files import produce_atomic, write_atomic
from equipoise.core.files import sha256_file as digest
from equipoise.core.folder import JobFolder, job_folder
from equipoise.judging.biases import PLACEBO, deal, read_biases, seed_biases
from equipoise.judging.biasscope import Audit, Bench, Rule, Settings, biasscope, judged, start
from equipoise.judging.hardened import Hardened, Variant, harden, judgebench_rows, preference_rows, write_rows
from equipoise.judging.judges import LogProbJudge, PairwiseJudge, PointwiseJudge, pairwise_template
from equipoise.judging.pairs import Pair, divide, read_pairs
from equipoise.judging.roles import Judge, Teacher
from equipoise.judging.teacher import ChatTeacher
from equipoise.judging.validation import Effect, PositionBias, position_bias

if TYPE_CHECKING:
    from equipoise.chat.account import Prices

Kind = Literal["pairwise", "pointwise", "logprob", "logprob-both"]
KINDS = ("pairwise", "pointwise", "logprob", "logprob-both")
RULES = "rules"  # the teacher without a model
SHARES = (0.25, 0.375, 0.375)  # of the questions, for discovery, selection and report
RECORD = "calls.jsonl"


@dataclass(frozen=True)
class Found:
    """A bias that was measured. effect: on the report part where it was measured there, else on the selection part.

    cut: where asked for, the effect with rewrites no longer than the answers they were made from.
    """

    name: str
    definition: str
    round: int
    support: int
    holds: bool
    selection: Effect
    report: Effect | None
    cut: Effect | None = None

    @property
    def effect(self) -> Effect:
        return self.report or self.selection


@dataclass(frozen=True)
class JudgeAudit:
    """What an audit came to. biases: every one that was measured, those that hold first, by their effect.

    position: what the judge makes of places, over the test pairs that were judged as they are. sizes: pairs for discovery,
    selection and report. placebo: what rewriting alone does, where a bias holds and the teacher can rewrite neutrally.
    """

    judge: str
    teacher: str
    biases: tuple[Found, ...]
    position: PositionBias
    sizes: tuple[int, int, int]
    calls: int
    hardened: int
    complete: bool
    placebo: Effect | None = None
    folder: Path | None = None

    @property
    def holding(self) -> tuple[Found, ...]:
        return tuple(each for each in self.biases if each.holds)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(each.name)}</td><td>{'yes' if each.holds else 'no'}</td><td>{each.effect.increase:+.3f}</td>"
            f"<td>{each.effect.lower:+.3f} to {each.effect.upper:+.3f}</td></tr>"
            for each in self.biases
        )
        head = "<tr><th>bias</th><th>holds</th><th>increase of the error</th><th>interval</th></tr>"
        return f"<p>{escape(self.judge)}</p><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


@dataclass(frozen=True)
class Plan:
    """What an audit would ask. calls: role -> (when nothing is found, when everything is). first: three pairs as read.

    tokens, usd: of all calls, in the same two cases, about four characters a token; usd is None without a price of either.
    """

    sizes: tuple[int, int, int]
    left_out: tuple[str, ...]
    calls: Mapping[str, tuple[int, int]]
    tokens: tuple[int, int]
    usd: tuple[float, float] | None
    first: tuple[Mapping[str, Any], ...]


def audit_judge(
    judge: str | Judge,
    teacher: str | Teacher,
    pairs: str | Path | Sequence[Pair],
    *,
    test_pairs: str | Path | Sequence[Pair] | None = None,
    judge_kind: Kind = "pairwise",
    rubric: str | Path | None = None,
    biases: str | Path | None = None,
    filters: Sequence[str] = (),
    rounds: int = 4,
    candidates: int | None = 10,
    rule: Rule = "paired",
    alpha: float = 0.05,
    without_explanation: bool = False,
    length_control: bool = False,
    debias: bool = False,
    limit: int | None = None,
    cut: int | None = None,
    judge_args: Mapping[str, Any] | None = None,
    teacher_args: Mapping[str, Any] | None = None,
    judge_url: str | None = None,
    teacher_url: str | None = None,
    judge_tokens: int = 1024,
    teacher_tokens: int = 4096,
    seed: int = 42,
    budget: str | Budget | None = None,
    prices: Prices | None = None,
    max_connections: int | None = None,
    replay: str | Path | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
) -> JudgeAudit:
    """Find what fools a judge, on the user's own preference pairs; see `biasscope` for the method and its defaults.

    judge, teacher: names of models as Inspect AI knows them ("openai/gpt-4o"), or what `language.load` loads, or objects
    with the methods of `roles`; the teacher may be "rules", which needs no model and finds what its rules know. pairs: a
    file or `Pair`s; divided into discovery, selection and report, or used for discovery alone where test_pairs are given.
    judge_kind: "pairwise" with a rubric, "pointwise", "logprob" for a local model, "logprob-both" for the mean of its
    log-probabilities in both orders, which cannot prefer a place. filters: further judges, two thirds of which a variant of
    the harder test set must fool. length_control: measure what holds once more with rewrites cut to the length of the
    answers. debias: warn a pairwise judge of the library's biases. cut: words of each text that a logprob judge sees.
    judge_tokens, teacher_tokens: of an answer, at most. budget: "calls=500,usd=4", over all attempts. replay: answer from
    this record only. With `out`, a folder; without, nothing is written or resumed.
    Raises BadInput for a wrong request, BudgetReached with what was found so far in the folder.
    """
    _check_request(judge_kind, limit=limit, cut=cut)
    if (rubric is not None or debias) and judge_kind != "pairwise":
        raise BadInput(f"A rubric and debias are about the prompt of a pairwise judge; this one is {judge_kind}.")
    words = Settings(
        rounds=rounds,
        candidates=candidates,
        rule=rule,
        alpha=alpha,
        explain=not without_explanation,
        seed=seed,
    )
    for arguments, url in ((judge_args, judge_url), (teacher_args, teacher_url)):
        _no_secrets(arguments, url)
    parts, left_out, digests = _divided(pairs, test_pairs, limit, seed)
    for role, model in (("the judge", judge), ("the teacher", teacher)):
        if isinstance(model, str) and model != RULES:
            digests[role] = resolve(model)[0]  # of a model on this machine it tells the content
    shown = None if rubric is None else pairwise_template(Path(rubric))
    if rubric is not None:
        digests["the rubric"] = digest(Path(rubric))
    library = seed_biases() if biases is None else read_biases(biases)
    if biases is not None:
        digests["the library of biases"] = digest(Path(biases))
    settings = {
        "judge": judge if isinstance(judge, str) else judge.name,
        "judge_kind": judge_kind,
        "teacher": teacher if isinstance(teacher, str) else teacher.name,
        "pairs": str(pairs) if isinstance(pairs, str | Path) else f"{len(pairs)} pairs",
        "test_pairs": str(test_pairs) if isinstance(test_pairs, str | Path) else None,
        "rubric": None if rubric is None else str(rubric),
        "biases": None if biases is None else str(biases),
        "filters": ",".join(filters) or None,
        "rounds": rounds,
        "candidates": candidates,
        "rule": rule,
        "alpha": alpha,
        "without_explanation": without_explanation,
        "length_control": length_control,
        "debias": debias,
        "limit": limit,
        "cut": cut,
        "judge_args": _told(judge_args),
        "teacher_args": _told(teacher_args),
        "judge_tokens": judge_tokens,
        "teacher_tokens": teacher_tokens,
        "seed": seed,
        "replay": None if replay is None else str(replay),
    }
    models = [model for model in (judge, teacher, *filters) if isinstance(model, str)]
    _check_prices(prices, models)
    limits = Budget.parse(budget) if isinstance(budget, str) else budget
    account = Account(prices)
    for model in models:
        paid = model != RULES and not account.has_price(resolve(model)[0])
        if paid and limits is not None and limits.usd is not None and replay is None:
            raise BadInput(
                f"A budget in usd needs the price of {model}: --prices {model}=READ:WRITTEN, dollars per million tokens."
            )

    def work(folder: Path | None, final: Path | None) -> JudgeAudit:
        with contextlib.ExitStack() as open_things:
            roles = _Roles(account, limits, folder, replay, max_connections, open_things)
            warned = library if debias else ()
            if not isinstance(judge, str):
                the_judge = judge
            elif judge_kind == "pairwise":
                the_judge = PairwiseJudge(
                    roles.chat(judge, judge_args, judge_url), rubric=shown, debias=warned, max_tokens=judge_tokens
                )
            elif judge_kind == "pointwise":
                the_judge = PointwiseJudge(roles.chat(judge, judge_args, judge_url), max_tokens=judge_tokens)
            else:
                both = judge_kind == "logprob-both"
                the_judge = roles.scorer(judge, judge_args, cut, explain=words.explain, balanced=both)
            the_teacher = roles.teacher(teacher, teacher_args, teacher_url, teacher_tokens)
            others: list[Judge] = [
                PairwiseJudge(roles.chat(name, None, None), rubric=shown, max_tokens=judge_tokens) for name in filters
            ]
            audit = start(the_judge, the_teacher, parts[1], parts[2], library=library, settings=words)
            task = _Task(the_judge, the_teacher, others, parts, left_out, account, audit, length_control)
            try:
                biasscope(the_judge, the_teacher, *parts, audit=audit)
                task.make_sets()
            except (BudgetReached, WorkFailed) as error:
                if folder is None or final is None:
                    raise
                task.write(folder, settings, final, source=settings["pairs"], stopped=str(error))
                raise type(error)(f"{error} What is known so far: {folder}/report.html") from error
            if folder is not None and final is not None:
                task.write(folder, settings, final, source=settings["pairs"])
            return task.result(final)

    if out is None:
        return work(None, None)
    with job_folder(Path(out), settings, digests, fresh=fresh) as folder:
        if folder.complete:
            return _stored(folder)
        work(folder.work, folder.final)
        folder.finish()
        return _stored(folder)


def plan(
    pairs: str | Path | Sequence[Pair],
    *,
    judge: str = "",
    teacher: str = "",
    test_pairs: str | Path | Sequence[Pair] | None = None,
    biases: str | Path | None = None,
    rounds: int = 4,
    candidates: int | None = 10,
    rule: Rule = "paired",
    alpha: float = 0.05,
    filters: Sequence[str] = (),
    without_explanation: bool = False,
    limit: int | None = None,
    seed: int = 42,
    judge_kind: Kind = "pairwise",
    prices: Prices | None = None,
) -> Plan:
    """The calls of an audit before it starts: when nothing is found, and when everything is found and passes.

    Not in it: repairs of invalid JSON, the filter judges of the harder test set, and the length control.
    """
    _check_request(judge_kind, limit=limit)
    Settings(rounds=rounds, candidates=candidates, alpha=alpha, seed=seed)
    _check_prices(prices, [judge, teacher, *filters])
    for name in filters:
        resolve(name)
    parts, left_out, _ = _divided(pairs, test_pairs, limit, seed)
    found, chosen, told = (len(part) for part in parts)
    if rule == "published":
        chosen, told = chosen + told, 0
    library = len(seed_biases() if biases is None else read_biases(biases))
    new = (found if candidates is None else min(candidates, found)) * rounds
    first_round = min(rounds, 1)
    calls = {
        "judge": (
            2 * (chosen + library * chosen + first_round * found),
            2 * ((1 + library + new) * (chosen + told) + rounds * found),
        ),
        "judge, explaining": (0, 0 if without_explanation else rounds * found),
        "teacher, rewriting": (
            library * chosen + first_round * found,
            (library + new) * (chosen + told) + (rounds + 1) * found,
        ),
        "teacher, naming": (0, rounds * found),
        "teacher, comparing names": (0, rounds * found * (library + new)),
    }
    sample = [pair for part in parts for pair in part][:200]
    pair = float(np.mean([len(p.question) + len(p.chosen) + len(p.rejected) for p in sample]))
    # Characters of prompt and of answer; a prompt's own words are about a thousand.
    sizes = {
        "judge": (pair + 1000, 600),
        "judge, explaining": (pair + 1500, 1000),
        "teacher, rewriting": (pair / 2 + 1500, pair / 2),
        "teacher, naming": (pair + 3000, 300),
        "teacher, comparing names": (800, 40),
    }
    tokens, usd = [0, 0], [0.0, 0.0]
    known = True
    if judge_kind.startswith("logprob"):
        calls["judge"] = (0, 0)  # scored here, no calls
    if teacher == RULES:
        calls |= {role: (0, 0) for role in calls if role.startswith("teacher")}
    if judge_kind == "pointwise":
        calls["judge"] = (2 * calls["judge"][0], 2 * calls["judge"][1])
    for role, ends in calls.items():
        model = judge if role.startswith("judge") else teacher
        if model == RULES:
            continue
        name, (prompt, answer) = resolve(model)[0] if model else "", sizes[role]
        for end in (0, 1):
            of = estimate([Planned(role, ends[end], prompt, round(answer / 4))], model=name, prices=prices)
            tokens[end] += of.prompt_tokens + of.generated_tokens
            known = known and of.usd is not None
            usd[end] += of.usd or 0.0
    return Plan(
        sizes=(found, chosen, told),
        left_out=tuple(left_out),
        calls=calls,
        tokens=(tokens[0], tokens[1]),
        usd=(usd[0], usd[1]) if known else None,
        first=tuple(asdict(pair) for pair in sample[:3]),
    )


@dataclass
class _Task:
    """An audit and what is made of it."""

    judge: Judge
    teacher: Teacher
    filters: list[Judge]
    parts: list[list[Pair]]
    left_out: list[str]
    account: Account
    audit: Audit
    length_control: bool
    cut: dict[str, Effect] = field(default_factory=dict)
    placebo: Effect | None = None
    hardened: Hardened | None = None
    preferences: list[dict[str, str]] | None = None

    def make_sets(self) -> None:
        """The harder test set of the test parts, and preference rows of the discovery part, with the biases that hold."""
        audit = self.audit
        holding = [audit.candidates[name].bias for name in audit.found]
        measured_on = audit.report if audit.report.pairs else audit.selection
        if holding and any(text is not None for text in measured_on.texts(PLACEBO)):
            self.placebo = measured_on.effect(PLACEBO)
        if self.length_control:
            self.cut = {bias.name: measured_on.length_controlled(bias) for bias in holding}
        variants, right = [], []
        for bench in (audit.selection, audit.report):
            for bias in holding:
                its_right, there = bench.rewritten(bias), bench.compared(bias.name)
                for pair, text, its, is_there in zip(bench.pairs, bench.texts(bias), its_right, there, strict=True):
                    if text is not None and is_there:
                        variants.append(Variant(pair, bias.name, text))
                        right.append(its)
        verdicts = [np.array(right).reshape(-1, 2)]
        verdicts += [judged(other, [v.pair for v in variants], "judge/filter")[0] for other in self.filters]
        seed = audit.settings.seed
        self.hardened = harden(variants, np.array(verdicts), seed=seed)
        if holding:
            pairs = self.parts[0]
            dealt = deal([bias.name for bias in holding], len(pairs), seed=seed)
            named = {bias.name: bias for bias in holding}
            wanted = [(pair, named[hand[0]]) for pair, hand in zip(pairs, dealt, strict=True)]
            texts = self.teacher.perturb(wanted, phase="rewrite/preferences")
            rewritten = [
                Variant(pair, bias.name, text)
                for (pair, bias), text in zip(wanted, texts, strict=True)
                if text is not None
            ]
            self.preferences = preference_rows(pairs, rewritten, seed=seed)

    def result(self, folder: Path | None) -> JudgeAudit:
        audit = self.audit
        holding = audit.found
        others = [name for name in audit.screened if name not in holding]
        names = [*holding, *sorted(others, key=lambda name: (-audit.screened[name].increase, name))]
        biases = []
        for name in names:
            candidate, report = audit.candidates[name], audit.confirmed.get(name)
            biases.append(
                Found(
                    name=name,
                    definition=candidate.bias.definition,
                    round=candidate.round,
                    support=candidate.support,
                    holds=self.hardened is not None and name in holding,
                    selection=audit.screened[name],
                    report=report,
                    cut=self.cut.get(name),
                )
            )
        sizes = len(self.parts[0]), len(audit.selection.pairs), len(audit.report.pairs)
        return JudgeAudit(
            judge=self.judge.name,
            teacher=self.teacher.name,
            biases=tuple(biases),
            position=self.position(),
            sizes=sizes,
            calls=self.account.total().calls,
            hardened=len(self.hardened.kept) if self.hardened else 0,
            placebo=self.placebo,
            complete=self.hardened is not None,
            folder=folder,
        )

    def position(self) -> PositionBias:
        benches = [bench for bench in self.benches() if bench.asked and bench.pairs]
        there = [bench.compared("") for bench in benches]
        right = [bench.original()[its] for bench, its in zip(benches, there, strict=True)]
        groups = [
            p.group
            for bench, its in zip(benches, there, strict=True)
            for p, i in zip(bench.pairs, its, strict=True)
            if i
        ]
        return position_bias(np.concatenate(right) if right else np.zeros((0, 2)), groups)

    def benches(self) -> tuple[Bench, Bench]:
        return self.audit.selection, self.audit.report

    def write(self, folder: Path, settings: Mapping[str, Any], final: Path, *, source: str, stopped: str = "") -> None:
        from equipoise.judging.page import report

        result = self.result(None)
        kept = {**asdict(result), "left_out": self.left_out}
        write_atomic(folder / "account.json", json.dumps(_plain(self.account.to_json()), indent=2))
        _write_judgements(folder / "judgements.parquet", self.benches())
        if self.hardened is not None:
            write_rows(folder / "hardened.jsonl", judgebench_rows(self.hardened.kept, source=source))
        if self.preferences:
            write_rows(folder / "preferences.jsonl", self.preferences)
        report(self, result, settings, folder / "report.html", final, stopped)
        write_atomic(folder / "biases.json", json.dumps(_plain(kept), indent=2, ensure_ascii=False))


class _Roles:
    """Makes judges and teachers from names; they share one record, one account and one budget."""

    def __init__(
        self,
        account: Account,
        budget: Budget | None,
        folder: Path | None,
        replay: str | Path | None,
        max_connections: int | None,
        opened: contextlib.ExitStack,
    ) -> None:
        self._account, self._budget, self._folder = account, budget, folder
        self._offline, self._connections, self._opened = replay is not None, max_connections, opened
        self._replay = replay
        self._record: Record | None = None

    def scorer(
        self, name: str, arguments: Mapping[str, Any] | None, cut: int | None, *, explain: bool, balanced: bool
    ) -> LogProbJudge:
        from equipoise.language.model import load

        known = inspect.signature(load).parameters.keys() - {"name"}
        for argument in arguments or {}:
            if argument not in known:
                raise BadInput(f"A logprob judge takes no argument {argument!r}. {did_you_mean(argument, known)}")
        bare = name.removeprefix("equipoise/")
        try:
            model = load(bare, **(arguments or {}))
        except BadInput as error:
            raise BadInput(
                f"{error} A logprob judge is a model of this machine or of the hub, not a provider's."
            ) from error
        memory = None if self._folder is None else self._folder / "margins.jsonl"
        chat = self.chat(f"equipoise/{bare}", arguments, None) if explain else None
        shown = resolve(f"equipoise/{bare}")[0]
        return LogProbJudge(model, chat=chat, cut=cut, memory=memory, balanced=balanced, name=shown)

    def teacher(
        self, name: str | Teacher, arguments: Mapping[str, Any] | None, url: str | None, max_tokens: int
    ) -> Teacher:
        if not isinstance(name, str):
            return name
        if name == RULES:
            from equipoise.judging.rules import RuleTeacher

            return RuleTeacher()
        return ChatTeacher(self.chat(name, arguments, url), max_tokens=max_tokens)

    def chat(self, name: str, arguments: Mapping[str, Any] | None, url: str | None) -> Chat:
        if not self._offline and importlib.util.find_spec("inspect_ai") is None:
            raise MissingExtra("Asking a chat model needs Inspect AI: pip install 'equipoise[chat]'")
        if self._record is None:
            self._record = self._opened.enter_context(Record(self._place(), read_only=self._offline))
        chat = Chat(
            name,
            record=self._record,
            account=self._account,
            budget=self._budget,
            model_args=arguments,
            base_url=url,
            max_connections=self._connections,
            offline=self._offline,
        )
        chat.open()  # a name or a key that is wrong is found before the first call is paid for
        return self._opened.enter_context(chat)

    def _place(self) -> Path:
        if self._replay is not None:
            return Path(self._replay)
        if self._folder is not None:
            return self._folder / RECORD
        import tempfile

        return Path(self._opened.enter_context(tempfile.TemporaryDirectory())) / RECORD


def _check_request(judge_kind: str, *, limit: int | None, cut: int | None = None) -> None:
    if judge_kind not in KINDS:
        raise BadInput(f"There is no judge of the kind {judge_kind!r}. {did_you_mean(judge_kind, KINDS)}")
    for name, value in (("limit", limit), ("cut", cut)):
        if value is not None and value < 1:
            raise BadInput(f"{name} is {value}, expected at least 1.")


def _check_prices(prices: Prices | None, models: Sequence[str]) -> None:
    """Raises BadInput for a price of a model that takes no part."""
    for priced in prices or {}:
        if priced not in models:
            raise BadInput(f"There is a price for {priced!r}, which takes no part. {did_you_mean(priced, models)}")


def _no_secrets(arguments: Mapping[str, Any] | None, url: str | None) -> None:
    """Raises BadInput for a key among the arguments, which are stored and shown in reports, or in an address."""
    names = [name for name in arguments or {} if SECRET_NAME.search(name)]
    if names or (url and "@" in url.split("//", 1)[-1].split("/", 1)[0]):
        what = f"The argument {names[0]!r}" if names else "The address"
        raise BadInput(
            f"{what} holds a secret; keys belong into the variable of the environment that the provider reads."
        )


def _divided(
    pairs: str | Path | Sequence[Pair], test_pairs: str | Path | Sequence[Pair] | None, limit: int | None, seed: int
) -> tuple[list[list[Pair]], list[str], dict[str, str]]:
    """Discovery, selection and report; what was left out; digests of the files."""
    left_out: list[str] = []
    digests: dict[str, str] = {}

    def read(source: str | Path | Sequence[Pair], what: str) -> list[Pair]:
        if isinstance(source, str | Path):
            found = read_pairs(source, limit=limit, left_out=left_out)
            digests[what] = digest(Path(source))
            return found
        told = json.dumps([asdict(pair) for pair in source]).encode()
        digests[what] = hashlib.sha256(told).hexdigest()
        return list(source)[:limit]

    known = read(pairs, "the pairs")
    if test_pairs is None:
        return divide(known, SHARES, seed=seed), left_out, digests
    tested = read(test_pairs, "the test pairs")
    shared = {pair.group for pair in known} & {pair.group for pair in tested}
    if shared:
        raise BadInput(
            f"{len(shared)} questions are in both files; a bias must be measured on questions that it was not found on."
        )
    return [known, *divide(tested, (0.5, 0.5), seed=seed)], left_out, digests


def _write_judgements(path: Path, benches: Sequence[Bench]) -> None:
    """A row a verdict: part, pair, domain, bias ("" for none), whether the better answer stood first, right (null: none)."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {name: [] for name in ("part", "pair", "domain", "bias", "better_first", "right")}
    for bench in benches:
        for bias, right, there in bench.conditions():
            for pair, its, is_there in zip(bench.pairs, right.tolist(), there, strict=True):
                if is_there:
                    for order, value in enumerate(its):
                        row = (
                            bench.name,
                            pair.id,
                            pair.domain,
                            bias,
                            order == 0,
                            None if math.isnan(value) else bool(value),
                        )
                        for name, cell in zip(columns, row, strict=True):
                            columns[name].append(cell)
    types = [pa.string()] * 4 + [pa.bool_()] * 2
    table = pa.table({name: pa.array(cells, kind) for (name, cells), kind in zip(columns.items(), types, strict=True)})
    produce_atomic(path, lambda target: parquet.write_table(table, target))


def _stored(folder: JobFolder) -> JudgeAudit:
    plain = json.loads((folder.final / "biases.json").read_text(encoding="utf-8"))
    del plain["left_out"]
    biases = tuple(
        Found(**each | {part: each[part] and _effect(each[part]) for part in ("selection", "report", "cut")})
        for each in plain.pop("biases")
    )
    position = PositionBias(**_numbers(plain.pop("position")))
    plain |= {"sizes": tuple(plain["sizes"]), "placebo": plain["placebo"] and _effect(plain["placebo"])}
    return JudgeAudit(**plain | {"biases": biases, "position": position, "folder": folder.final})


def _effect(plain: dict[str, Any]) -> Effect:
    from equipoise.judging.validation import Rate

    words = _numbers(plain)
    words.update({when: Rate(**plain[when]) for when in ("before", "after")})
    return Effect(**words)


def _numbers(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in plain.items()}


def _plain(value: Any) -> Any:
    """JSON without nan, which is null there."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _told(arguments: Mapping[str, Any] | None) -> str | None:
    return ",".join(f"{name}={value}" for name, value in arguments.items()) if arguments else None
