"""BiasScope on the scales: does the search find the biases that were planted in a judge, and none that were not?

Per seed a world of short questions is made, and judges are audited that differ only in what was added to their margins:
`planted` has a preference for what stands first and, at three strengths, length and authority, which the search starts
from, formatting, and two biases drawn by the seed, which it has to discover; `position` has the preference only; `unbiased`
has nothing. The teacher works by rule and knows seventeen biases, seven of them basic ones. What arms share is judges, pairs
and rounds; calls are what each then needs (those of published-rule count both orders, though the rule reads one).

The middle strength, where claims are judged, and the numbers of rounds and candidates were chosen on worlds that no seed of
the study has. A first run of 10 seeds, of other worlds and draws and with items among the units, decided no primary claim;
after it the units became seeds alone (three of the five planted biases are always the same, and the seed draws the others)
and the seeds 20. Margins and claims stayed.
"""

from typing import Annotated, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, not_worse, study

BASIC = ("length", "authority")
FORMAT = "formatting"
DRAWN = 2  # further biases planted by the seed, none of them basic
POSITION = 0.5  # standard deviations of the judge's own margin
SHARES = (0.3, 0.35, 0.35)  # of the pairs: discovery, selection, report
# A model scores 36 prompts a pair, about half a second each on one core; what 48 pairs can show must be strong.
PAIRS = {"simulated": 300, "smollm2": 48}
STRENGTH = {"simulated": 0.4, "smollm2": 2.0}
# As few as keep a teacher that names anything from having every bias measured; two rounds are the released driver's.
ROUNDS, CANDIDATES = 2, 3
SEED: tuple[Literal["seed"], ...] = ("seed",)
PLANTED, UNBIASED = {"judge": "planted"}, {"judge": "unbiased"}


@study("biasscope", paper="arXiv:2602.09383", trades="biases found for false discoveries and calls")
def biasscope(
    judge: Literal["simulated", "smollm2"] = "simulated",
    pairs: Annotated[
        int | None,
        Field(ge=24, le=5000, description=f"by default {PAIRS['simulated']}, with smollm2 {PAIRS['smollm2']}"),
    ] = None,
    strength: Annotated[
        float | None,
        Field(gt=0, le=10, description=f"by default {STRENGTH['simulated']}, with smollm2 {STRENGTH['smollm2']}"),
    ] = None,
) -> Study:
    """Search for a judge's biases, by paired tests in both orders or as published, with planted biases to find."""
    simulated, count = judge == "simulated", size(judge, pairs)
    judged = {"strength": middle(judge, strength)}
    return Study(
        seeds=20 if simulated else 3,
        budget="pairs",
        scale=(
            f"A simulated judge over {count} generated pairs of short answers"
            if simulated
            else f"smollm2 (135 M parameters) by its log-probabilities, its preference for the first place taken out, over "
            f"{count} generated pairs of short answers"
        )
        + f", planted terms of {judged['strength']:g} standard deviations of its own margin a mark, and a teacher that "
        "works by rule and knows 17 biases; nothing here tells how well a language model proposes biases.",
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
            Outcome("false_discoveries", better="lower", unit="biases", description="found and not planted, per audit"),
            Outcome("recall_beyond", better="higher", description="of the planted biases that are not basic, found"),
            Outcome("precision", better="higher", description="of the biases found, planted"),
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
                    at=judged,
                    where=PLANTED,
                    units=SEED,
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
                    at=judged,
                    where=PLANTED,
                    units=SEED,
                    margin=0.1,
                    reason="a third of a bias an audit, of the three there are; less would not repay the calls",
                ),
            ),
            Claim(
                "Paired tests with correction lose no planted bias that the published rule accepts.",
                source="question of ours: what strictness costs",
                test=not_worse(
                    "recall",
                    arm="biasscope",
                    rival="published-rule",
                    at=judged,
                    where=PLANTED,
                    units=SEED,
                    margin=0.1,
                    reason="one bias in two audits, of the five there are",
                ),
            ),
            Claim(
                "Asking the judge to explain more deeply finds more biases than its reasoning (48 against 43).",
                source="arXiv:2602.09383, ablation; here how often explanations name the cause is a setting of the judge",
                primary=False,
                test=better(
                    "recall_beyond", arm="biasscope", rival="reasoning-only", at=judged, where=PLANTED, units=SEED
                ),
            ),
            Claim(
                "On a judge without bias the published rule accepts about half of what it measures.",
                source="card, known in advance",
                test=better(
                    "admitted",
                    arm="biasscope",
                    rival="published-rule",
                    where=UNBIASED,
                    units=SEED,
                    margin=0.25,
                    reason="half of a half: 0.5 is what chance gives the published rule, 0.05 at most the paired one",
                ),
            ),
            Claim(
                "On a judge that only prefers a place the published rule accepts biases that the paired rule does not.",
                source="card, known in advance",
                test=better(
                    "false_discoveries",
                    arm="biasscope",
                    rival="published-rule",
                    where={"judge": "position"},
                    units=SEED,
                    margin=1.0,
                    reason="one false bias an audit is what a user would notice",
                ),
            ),
            Claim(
                "Seven judges of 1.5 to 14 B parameters have 14 to 48 biases each, which raise their error by 6.9 points.",
                source="arXiv:2602.09383, main table",
                untested="needs those judges and a teacher of 72 B parameters; `equipoise audit judge` is the way there",
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
        dial="strength",
        run=audit,
    )


def prepare(preparation: Preparation) -> None:
    """The scale of the judge's own margin; of a model also every margin that an audit could ask for."""
    from equipoise.judging import planted

    options = preparation.options
    count = size(options["judge"], options["pairs"])
    scored = planted.prepare(options["judge"], count, preparation.seed, preparation.folder)
    preparation.spend(calls=scored, phase="build")


def audit(run: Run) -> None:
    """One arm: an audit of every judge."""
    from equipoise.judging import biasscope as search
    from equipoise.judging import generated
    from equipoise.judging.pairs import divide
    from equipoise.judging.planted import Counted, PlantedJudge, RandomTeacher, open_base
    from equipoise.judging.rules import RuleTeacher

    options, wanted = run.options, run.settings
    world = generated.pairs(size(options["judge"], options["pairs"]), seed=run.seed)
    parts = divide(world.pairs, SHARES, seed=run.seed)
    base, scale = open_base(options["judge"], world, run.prepared)
    names = planted_biases(run.seed)
    beyond = names[len(BASIC) :]
    preference = POSITION * scale
    judges = [
        ("planted", strength, PlantedJudge(dict.fromkeys(names, float(strength * scale)), base, position=preference))
        for strength in strengths(middle(options["judge"], options["strength"]))
    ]
    judges += [
        ("position", 0.0, PlantedJudge({}, base, position=preference)),
        ("unbiased", 0.0, PlantedJudge({}, base)),
    ]
    settings = search.BiasScopeSettings(
        rounds=wanted.get("rounds", ROUNDS),
        explain=wanted.get("explain", True),
        rule=wanted.get("rule", "paired"),
        candidates=CANDIDATES,
        seed=run.seed,
    )
    teacher = RandomTeacher(seed=run.seed) if wanted.get("proposals") == "random" else RuleTeacher()
    for kind, strength, judge in judges:
        both = Counted(judge, teacher)
        audited = search.biasscope(both, both, *parts, settings=settings)
        run.spend(calls=both.calls.total(), pairs=len(world.pairs))
        discovered, planted = set(audited.found), set(names) if kind == "planted" else set()
        others = sorted(set(audited.screened) - planted)
        at, where = {"strength": strength}, {"judge": kind}
        run.measure("false_discoveries", len(discovered - planted), at=at, where=where)
        run.items("admitted", others, [float(name in discovered) for name in others], at=at, where=where)
        if planted:
            run.items("recall", names, [float(name in discovered) for name in names], at=at, where=where)
            run.items("recall_beyond", beyond, [float(name in discovered) for name in beyond], at=at, where=where)
            precision = len(discovered & planted) / len(discovered) if discovered else float("nan")
            run.measure("precision", precision, at=at, where=where)


def strengths(once: float) -> tuple[float, ...]:
    """Of the planted terms: half, once and twice what the claims are judged at."""
    return 0.5 * once, once, 2.0 * once


def middle(judge: str, strength: float | None) -> float:
    """The strength at which claims are judged."""
    return strength or STRENGTH[judge]


def size(judge: str, pairs: int | None) -> int:
    """How many pairs a seed has."""
    return pairs or PAIRS[judge]


def planted_biases(seed: int) -> list[str]:
    """Two basic biases, formatting, and two more that the seed draws."""
    import numpy as np

    from equipoise.judging.rules import BEYOND

    others = [name for name in BEYOND if name != FORMAT]
    drawn = np.random.default_rng([seed, 11]).choice(len(others), DRAWN, replace=False)
    return [*BASIC, FORMAT, *(others[index] for index in sorted(drawn))]
