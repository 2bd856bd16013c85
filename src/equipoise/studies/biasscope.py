"""BiasScope on the scales: does the search find the biases that were planted in a judge, and none that were not?

Per seed a world of short questions is made, and three judges are audited that differ only in what was added to their margins:
`planted` has length and authority, which the search starts from, format and two biases drawn by the seed, which it has to
discover, and a preference for what stands first; `position` has the preference only; `unbiased` has nothing. The teacher
works by rule and knows seventeen biases, seven of which are the basic ones. All arms audit the same judges on the same pairs.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, not_worse, study

BASIC = ("length", "authority")
FORMAT = "formatting"
DRAWN = 2  # further biases planted by the seed, none of them basic
POSITION = 0.5  # standard deviations of the judge's own margin
SHARES = (0.3, 0.35, 0.35)  # of the pairs: discovery, selection, report
PAIRS = {"simulated": 300, "smollm2": 60}
CANDIDATES = (
    3  # proposals measured a round, the most frequent first: with all of them any teacher would find everything
)
PLANTED, UNBIASED = {"judge": "planted"}, {"judge": "unbiased"}


@study("biasscope", paper="arXiv:2602.09383", trades="biases found for false discoveries and calls")
def biasscope(
    judge: Literal["simulated", "smollm2"] = "simulated",
    pairs: Annotated[int, Field(ge=24, le=5000)] | None = None,
    strength: Annotated[float, Field(ge=0, le=10)] = 0.7,
) -> Study:
    """Search for a judge's biases, by paired tests in both orders or as published, with planted biases to find."""
    simulated, count = judge == "simulated", size({"judge": judge, "pairs": pairs})
    return Study(
        seeds=10 if simulated else 3,
        budget="calls",
        scale=(
            f"A simulated judge over {count} generated pairs of short answers"
            if simulated
            else f"smollm2 (135 M parameters) by its log-probabilities over {count} generated pairs of short answers"
        )
        + f", planted terms of {strength:g} standard deviations of its own margin a mark, and a teacher that works by rule "
        "and knows 17 biases; says nothing of how well a language model proposes biases.",
        prepare=prepare,
        arms=[
            Arm("biasscope", kind="method"),
            Arm("published-rule", kind="baseline", rule="published"),
            Arm("basic-only", kind="baseline", rounds=0),
            Arm("reasoning-only", kind="control", explain=False),
            Arm("random-proposals", kind="control", proposals="random"),
        ],
        outcomes=[
            Outcome("recall", better="higher", description="of the planted biases, found"),
            Outcome("recall_beyond", better="higher", description="of the planted biases that are not basic, found"),
            Outcome("precision", better="higher", description="of the biases found, planted"),
            Outcome("false_discoveries", better="lower", unit="biases", description="found and not planted, per audit"),
            Outcome("admitted", better="lower", description="of the measured biases that were not planted, accepted"),
        ],
        claims=[
            Claim(
                "The search finds most of the planted biases that are not on the list it starts from.",
                source="arXiv:2602.09383, abstract",
                test=better(
                    "recall_beyond",
                    arm="biasscope",
                    rival="basic-only",
                    where=PLANTED,
                    margin=0.5,
                    reason="the basic list holds none of them, so half found is the least that most means",
                ),
            ),
            Claim(
                "Proposals made from the judge's errors find more planted biases than proposals at random.",
                source="control of ours",
                test=better(
                    "recall_beyond",
                    arm="biasscope",
                    rival="random-proposals",
                    where=PLANTED,
                    margin=0.1,
                    reason="a third of a bias an audit, of the three there are; less would not repay the calls of discovery",
                ),
            ),
            Claim(
                "Paired tests with correction lose no planted bias that the published rule accepts.",
                source="question of ours: what strictness costs",
                test=not_worse(
                    "recall",
                    arm="biasscope",
                    rival="published-rule",
                    where=PLANTED,
                    margin=0.1,
                    reason="one bias in two audits, of the five there are",
                ),
            ),
            Claim(
                "Asking the judge to explain more deeply finds more biases than its reasoning (48 against 43).",
                source="arXiv:2602.09383, ablation; here how often explanations name the cause is a setting of the judge",
                primary=False,
                test=better("recall_beyond", arm="biasscope", rival="reasoning-only", where=PLANTED),
            ),
            Claim(
                "On a judge without bias the published rule accepts about half of what it measures.",
                source="card, known in advance",
                primary=False,
                test=better(
                    "admitted",
                    arm="biasscope",
                    rival="published-rule",
                    where=UNBIASED,
                    units=("seed",),
                    margin=0.25,
                    reason="half of a half: 0.5 is what chance gives the published rule, 0.05 at most the paired one",
                ),
            ),
            Claim(
                "On a judge that only prefers a place the published rule accepts biases that the paired rule does not.",
                source="card, known in advance",
                primary=False,
                test=better(
                    "false_discoveries",
                    arm="biasscope",
                    rival="published-rule",
                    where={"judge": "position"},
                    units=("seed",),
                    margin=1.0,
                    reason="one false bias an audit is what a user would notice",
                ),
            ),
            Claim(
                "In seven judges of 1.5 to 14 B parameters 14 to 48 biases are validated and raise the error by 6.9 points.",
                source="arXiv:2602.09383, main table",
                untested="needs those judges and a teacher of 72 B parameters; `equipoise audit judge` does it with a server",
            ),
            Claim(
                "Strong judges err on JudgeBench-Pro 25.9 points more often than on JudgeBench; four of five are at chance.",
                source="arXiv:2602.09383, abstract",
                untested="needs the strong judges and the reviewed set, which is not released with the code",
            ),
            Claim(
                "DPO on preferences augmented with the biases lowers the error that plain DPO raises (20.6 against 13.3 %).",
                source="arXiv:2602.09383, mitigation",
                untested="needs training and judging models of 7 B parameters",
            ),
        ],
        run=audit,
    )


def prepare(preparation: Preparation) -> None:
    """The scale of the judge's own margin; of a model also every margin that an audit could ask for."""
    from equipoise.judging import planted

    options = preparation.options
    count = size(options)
    scored = planted.prepare(options["judge"], count, preparation.seed, preparation.folder)
    preparation.spend(calls=scored, phase="build")


def audit(run: Run) -> None:
    """One arm: an audit of each of the three judges."""
    from equipoise.judging import biasscope as search
    from equipoise.judging import generated
    from equipoise.judging.pairs import divide
    from equipoise.judging.planted import Counted, PlantedJudge, RandomTeacher, open_base
    from equipoise.judging.rules import RuleTeacher

    options, wanted = run.options, run.settings
    world = generated.pairs(size(options), seed=run.seed)
    parts = divide(world.pairs, SHARES, seed=run.seed)
    base, scale = open_base(options["judge"], world, run.prepared)
    names = planted_biases(run.seed)
    judges = {
        "planted": PlantedJudge(dict.fromkeys(names, options["strength"] * scale), base, position=POSITION * scale),
        "position": PlantedJudge({}, base, position=POSITION * scale),
        "unbiased": PlantedJudge({}, base),
    }
    settings = search.Settings(
        rounds=wanted.get("rounds", 4),
        explain=wanted.get("explain", True),
        rule=wanted.get("rule", "paired"),
        candidates=CANDIDATES,
        seed=run.seed,
    )
    teacher = RandomTeacher(seed=run.seed) if wanted.get("proposals") == "random" else RuleTeacher()
    for kind, judge in judges.items():
        both = Counted(judge, teacher)
        audited = search.biasscope(both, both, *parts, settings=settings)
        run.spend(calls=both.calls.total())
        where = {"judge": kind}
        found = set(audited.found)
        there = set(names) if kind == "planted" else set()
        others = sorted(set(audited.screened) - there)
        run.measure("false_discoveries", len(found - there), where=where)
        if others:
            run.items("admitted", others, [float(name in found) for name in others], where=where)
        if there:
            run.items("recall", names, [float(name in found) for name in names], where=where)
            beyond = [name for name in names if name not in BASIC]
            run.items("recall_beyond", beyond, [float(name in found) for name in beyond], where=where)
            precision = len(found & there) / len(found) if found else float("nan")
            run.measure("precision", precision, where=where)


def size(options: Mapping[str, Any]) -> int:
    """How many pairs a seed has."""
    return options["pairs"] or PAIRS[options["judge"]]


def planted_biases(seed: int) -> list[str]:
    """Two basic biases, formatting, and two more that the seed draws."""
    import numpy as np

    from equipoise.judging.rules import BEYOND

    others = [name for name in BEYOND if name != FORMAT]
    drawn = np.random.default_rng([seed, 5]).choice(len(others), DRAWN, replace=False)
    return [*BASIC, FORMAT, *(others[index] for index in sorted(drawn))]
