"""A made-up study that has everything in it, measured and judged by hand, for tests of its report."""

import dataclasses
import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from equipoise.study import Arm, Claim, Outcome, Select, Study, better, matched, not_worse
from equipoise.study.judging import ClaimVerdict, Effect, Judgement, Summary
from equipoise.study.report import render
from equipoise.study.results import Results, RunInfo, items_schema, measurements_schema
from equipoise.study.selection import Selected

HOSTILE = "<script>alert(1)</script>"
LEVEL = 0.4
STEPS = tuple(range(20, 201, 20))
SEEDS = 10
N = 200


def declared() -> Study:
    grid = {"rate": [1e-4, 3e-4, 1e-3]}
    arms = [
        Arm("sum", kind="baseline", combine="sum", grid=grid),
        Arm("pcgrad", combine="pcgrad", scope="tensor", grid=grid),
        Arm("pcgrad-global", combine="pcgrad", scope="global", grid=grid),
        Arm("sago", combine="sago", grid=grid),
        Arm("untrained", kind="reference", fixed="nothing is trained", combine="none"),
        Arm("random-sign", kind="control", combine="random", grid=grid),
    ]
    object.__setattr__(arms[5], "name", HOSTILE)  # a declaration refuses it; stored folders could still hold it
    return Study(
        arms=arms,
        outcomes=[
            Outcome(
                "forget_accuracy",
                better="lower",
                chance=0.25,
                description="Multiple choice on what is to be forgotten.",
            ),
            Outcome("retain_accuracy", better="higher", chance=0.25),
            Outcome("perplexity", better="lower", log=True, unit="per token"),
        ],
        claims=[
            Claim(
                "At equal forgetting, SAGO keeps more than the plain sum of the two gradients",
                source="arXiv:2604.14808, abstract",
                test=matched(
                    "forget_accuracy",
                    arm="sago",
                    rival="sum",
                    judge="retain_accuracy",
                    level=LEVEL,
                    margin=0.02,
                    reason="the spread between two seeds of one arm",
                ),
            ),
            Claim(
                "SAGO keeps at least three points more than PCGrad at the same budget",
                source="arXiv:2604.14808, table 2",
                test=better(
                    "retain_accuracy", arm="sago", rival="pcgrad", margin=0.03, reason="half of the gap printed there"
                ),
            ),
            Claim(
                "SAGO's general text stays as fluent as PCGrad's",
                source="arXiv:2604.14808, section 5",
                test=not_worse("perplexity", arm="sago", rival="pcgrad", margin=0.05, reason="5 % is not noticed"),
            ),
            Claim(
                "The same holds for seven billion parameters",
                source="arXiv:2604.14808, table 1",
                untested="needs 8 GPUs",
            ),
            Claim(
                "Global projection forgets more slowly",
                source="card, known in advance",
                test=better("forget_accuracy", arm="pcgrad", rival="pcgrad-global"),
            ),
        ],
        run=lambda run: None,
        seeds=SEEDS,
        budget="optimizer_steps",
        select=Select("retain_accuracy", matched="forget_accuracy", level=LEVEL),
        scale="tiny, a Llama of 1.1 M parameters taught 400 invented facts; 200 questions a split, 2 CPU cores.",
        name="sago",
        paper="arXiv:2604.14808",
        trades="forgetting for retention",
        options={"model": "tiny", "steps": 200, "objective": "simnpo"},
    )


# arm -> forget and retain accuracy at the end of the path, perplexity there as a multiple of the first
ENDS = {
    "sum": (0.30, 0.60, 1.35),
    "pcgrad": (0.28, 0.70, 1.15),
    "pcgrad-global": (0.33, 0.68, 1.18),
    "sago": (0.31, 0.71, 1.12),
    "untrained": (0.92, 0.93, 1.0),
    HOSTILE: (0.45, 0.50, 1.6),
}
STARTS = {"forget_accuracy": 0.93, "retain_accuracy": 0.94, "perplexity": 8.0}
LOST = {
    ("pcgrad-global", 7): ("failed", "loss is nan at step 63 <b>see</b> train.log"),
    (HOSTILE, 3): ("gave up", "no progress for 300 s"),
}


def middle(arm: Arm) -> int:
    return len(arm.points()) // 2


def measured(study: Study) -> Results:
    """Two tuning seeds for every point, ten test seeds for the middle one; smooth paths with noise."""
    draw = np.random.default_rng(0)
    runs: list[RunInfo] = []
    rows: list[dict] = []
    for arm in study.arms:
        for point in range(len(arm.points())):
            for seed in () if arm.fixed else (1_000_000, 1_000_001):
                runs.append(one_run(arm, point, seed, "tuning", draw))
        for seed in range(SEEDS):
            run = one_run(arm, middle(arm), seed, "test", draw)
            runs.append(run)
            if run.state == "complete":
                rows += path_of(run, len(runs) - 1, draw)
    schema = measurements_schema()
    plain = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema]
    columns = {
        name: pa.array([row[name] for row in rows], kind) for name, kind in zip(schema.names, plain, strict=True)
    }
    selection = [
        Selected(arm.name, p, settings, (0.61, 0.63, math.nan)[p], (2, 2, 1)[p], 2, p == middle(arm))
        for arm in study.arms
        if not arm.fixed
        for p, settings in enumerate(arm.points())
    ]
    return Results(
        study="sago",
        options=study.options,
        environment={
            "torch": "2.13.0",
            "threads": 1,
            "device": "cpu",
            "command": "equipoise study run sago --out ./sago",
        },
        runs=runs,
        chosen={arm.name: middle(arm) for arm in study.arms},
        measurements=pa.table(columns),
        items=items_schema().empty_table(),
        selection=selection,
    )


def one_run(arm: Arm, point: int, seed: int, role: str, draw: np.random.Generator) -> RunInfo:
    steps = 0 if arm.fixed else STEPS[-1]
    seconds = 21.3 + draw.normal() * 2
    build = {"optimizer_steps": steps, "trained_tokens": steps * 812, "seconds": seconds, "peak_bytes": 4.1e8}
    query = {"seconds": 3.1 + draw.random(), "peak_bytes": 3.3e8}
    lost_attempt = 60 if seed == 4 else 0
    cost = {
        "work": {"build": build, "query": query},
        "spent": {"build": {**build, "seconds": seconds + lost_attempt}, "query": query},
    }
    name = re.sub(r"\W", "_", arm.name)
    state, error = LOST.get((arm.name, seed), ("complete", None))
    return RunInfo(
        key=f"{name}-p{point}-s{seed}",
        arm=arm.name,
        kind=arm.kind,
        point=point,
        settings=arm.points()[point],
        seed=seed,
        role=role,
        state=state,
        cost=cost,
        folder=Path("runs") / name,
        fingerprint="f" * 16,
        error=error,
    )


def path_of(run: RunInfo, index: int, draw: np.random.Generator) -> list[dict]:
    """Its measurements along the path, on both splits; a single point for the arm that is not trained."""
    rows = []
    forget, retain, fluency = ENDS[run.arm]
    ends = {"forget_accuracy": forget, "retain_accuracy": retain, "perplexity": STARTS["perplexity"] * fluency}
    bias = {name: draw.normal(0, 0.012) for name in ends}
    for order, step in enumerate([None] if run.arm == "untrained" else STEPS):
        done = 1.0 if step is None else 1 - math.exp(-3 * step / STEPS[-1])
        for split in ("test", "validation"):  # the later must not win
            for outcome, start in STARTS.items():
                value = start + (ends[outcome] + bias[outcome] - start) * done
                row = {"run": index, "arm": run.arm, "point": run.point, "seed": run.seed, "role": run.role}
                row |= {"outcome": outcome, "value": value + draw.normal() * 0.1, "numerator": math.nan, "of": math.nan}
                if outcome != "perplexity":
                    count = int(draw.binomial(N, min(max(value, 0), 1)))
                    row |= {"value": count / N, "numerator": count, "of": N}
                row["missing"] = 3 if (split, run.seed, outcome) == ("test", 5, "retain_accuracy") else 0
                row["at"] = "" if step is None else json.dumps({"step": step})
                rows.append(row | {"where": json.dumps({"split": split}), "order": order})
    return rows


def judged(study: Study, results: Results) -> Judgement:
    """Verdicts by hand, summaries from the table: what judging would give, without its rules."""
    draw = np.random.default_rng(1)
    frame = results.measurements.to_pandas()
    frame["step"] = [json.loads(at or "{}").get("step", -1) for at in frame["at"]]
    frame = frame[[json.loads(w)["split"] == "test" for w in frame["where"]]]
    summaries = []
    for arm in study.arms:
        for outcome in study.outcomes:
            rows = frame[(frame["arm"] == arm.name) & (frame["outcome"] == outcome.name)]
            last = rows[rows["step"] == rows["step"].max()]
            half = 2.26 * last["value"].std() / math.sqrt(len(last))
            counted = bool(last["of"].notna().all())
            at = json.dumps({"step": 200}) if arm.name != "untrained" else ""
            keys = tuple(results.runs[i].key for i in last["run"])
            mean = float(last["value"].mean())
            summaries.append(
                Summary(
                    arm.name,
                    outcome.name,
                    at,
                    json.dumps({"split": "test"}),
                    mean,
                    mean - half,
                    mean + half,
                    len(last),
                    float(last["numerator"].sum()) if counted else math.nan,
                    float(last["of"].sum()) if counted else math.nan,
                    int(last["missing"].sum()),
                    keys,
                )
            )
            if outcome.name == "retain_accuracy" and arm.name not in ("untrained", HOSTILE):
                mean = {"sum": 0.655, "pcgrad": 0.722, "pcgrad-global": 0.718, "sago": 0.731}[arm.name]
                at = json.dumps({"forget_accuracy": LEVEL})
                summaries.append(
                    Summary(
                        arm.name,
                        outcome.name,
                        at,
                        json.dumps({"split": "test"}),
                        mean,
                        mean - 0.014,
                        mean + 0.014,
                        len(last),
                        math.nan,
                        math.nan,
                        0,
                        keys,
                    )
                )

    def effect(
        label: str, estimate: float, half: float, margin: float, unit: str = "", level: float = 1 - 0.05 / 3
    ) -> Effect:
        per_seed = tuple(estimate + draw.normal(0, half * 1.3, SEEDS))
        favours = "arm" if estimate - half > 0 else "rival" if estimate + half < 0 else "neither"
        return Effect(
            label, estimate, estimate - half, estimate + half, level, 9.0, SEEDS, N, unit, per_seed, margin, favours
        )

    def keys(*arms: str) -> tuple[str, ...]:
        return tuple(
            run.key for run in results.runs if run.arm in arms and run.role == "test" and run.state == "complete"
        )

    c, over = study.claims, "over 10 seeds and 200 items at 98.33 %"
    verdicts = (
        ClaimVerdict(
            c[0],
            "supported",
            f"an advantage above 0.02: +0.076 [+0.045, +0.107] {over}",
            (effect("retain_accuracy: sago against sum", 0.076, 0.031, 0.02),),
            None,
            True,
            False,
            keys("sago", "sum"),
            {
                "matched": "forget_accuracy",
                "level": LEVEL,
                "crossings": {key: 90.0 + i for i, key in enumerate(keys("sago", "sum"))},
                "reached": {"sago": "10 of 10", "sum": "10 of 10"},
            },
        ),
        ClaimVerdict(
            c[1],
            "refuted",
            f"no advantage as large as 0.03: +0.004 [-0.013, +0.021] {over}",
            (effect("retain_accuracy: sago against pcgrad", 0.004, 0.017, 0.03),),
            None,
            True,
            False,
            keys("sago", "pcgrad"),
            {},
        ),
        ClaimVerdict(
            c[2],
            "undecided",
            f"the interval does not settle it: -0.021 [-0.079, +0.037] log per token {over}",
            (effect("perplexity: sago against pcgrad", -0.021, 0.058, 0.05, "log per token"),),
            (18, 34),
            True,
            False,
            keys("sago", "pcgrad"),
            {},
        ),
        ClaimVerdict(c[3], "untested", "needs 8 GPUs", (), None, True, False, (), {}),
        ClaimVerdict(
            c[4],
            "undecided",
            f"exploratory, no verdict: an advantage: +0.041 [+0.021, +0.061] {over}",
            (effect("forget_accuracy: pcgrad against pcgrad-global", 0.041, 0.02, 0.0, level=0.95),),
            None,
            False,
            False,
            keys("pcgrad", "pcgrad-global"),
            {},
        ),
    )
    verdicts = tuple(
        dataclasses.replace(v, effects=tuple(dataclasses.replace(e, test=v.claim.test) for e in v.effects))
        for v in verdicts
    )
    design = ("Claim 2 can be decided: the half-width expected with 10 seeds and 200 items is 0.018, the margin 0.03.",)
    notes = (
        "3 answers could not be parsed (retain_accuracy, seed 5 of each arm) and count as wrong.",
        f"{HOSTILE}: 1 run gave up and is left out.",
    )
    return Judgement("sago", verdicts, tuple(summaries), design, notes)


def rendered_from_one_seed(made: tuple, folder: Path) -> Path:
    study, results, judgement, _ = made
    runs = [r if r.seed == 0 or r.role == "tuning" else dataclasses.replace(r, state="absent") for r in results.runs]
    kept = pa.array([runs[i].seed == 0 for i in results.measurements["run"].to_pylist()])
    one = dataclasses.replace(results, runs=runs, measurements=results.measurements.filter(kept))
    summaries = tuple(dataclasses.replace(s, seeds=1, runs=s.runs[:1]) for s in judgement.summaries)  # over its items
    untested = judgement.verdicts[3:4]
    return render(study, one, dataclasses.replace(judgement, verdicts=untested, summaries=summaries), folder)


def shown(path: Path) -> str:
    """What a reader sees: the text of the page without scripts and styles."""
    source = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())
