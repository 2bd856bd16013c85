"""What results say of themselves: every line of a small one by hand, and each warning on both sides of its limit."""

import math
from dataclasses import replace

from equipoise.core.shares import Bounded, Share
from equipoise.reinforcement.prm_evaluation_result import (
    BestOf,
    Discrimination,
    ErrorClass,
    FirstErrors,
    PrmEvaluation,
    PrmEvaluationPlan,
)
from equipoise.reinforcement.prm_label_result import LabelPlan, StepLabels
from equipoise.reinforcement.prm_scoring_result import ScoredStep, StepScores, StepScoresPlan
from equipoise.reinforcement.prm_training_result import PrmTrained, PrmTrainingPlan, TrainedStage
from equipoise.reinforcement.rates import GroupCounts, Selected
from equipoise.reinforcement.result import Answered, Reinforced, ReinforcePlan
from equipoise.reinforcement.solvable_result import (
    Predicted,
    ScoresPlan,
    Solvable,
    SolvablePlan,
    SolvableScores,
    Target,
    Threshold,
)
from equipoise.reinforcement.tool_audit_result import OVERLAP, SHORT, ToolAudit, ToolAuditPlan, ToolUse, between

NAN = math.nan
HALF, UNSURE = Bounded(0.5, 0.25, 0.75), Bounded(0.1, NAN, NAN)
UP, DOWN, FLAT = Bounded(0.2, 0.1, 0.3), Bounded(-0.2, -0.3, -0.1), Bounded(0.0, 0.0, 0.0)


LABELS = StepLabels(
    names={"judge": "rules"},
    source="",
    settings={},
    problems=4,
    solutions=5,
    steps=1200,
    correct=HALF,
    before={"hard": HALF, "soft": UP},
    after={"hard": UP, "soft": UNSURE},
    lowered={"hard": UP, "soft": FLAT},
    rises=(0, 0),
    pairs=0,
    completions=1000,
    successes=400,
    removed=30,
    unjudged={"cut": 150, "unread": 50},
    left_out={},
    judged={"asked": 10, "unread": 1, "odd": 1},
    places=(),
    examples=(),
    solution_shown=(),
    cost={"tokens": 12345.0, "seconds": 1.5},
)


def test_labels_of_steps():
    headline = (
        "50.0% of 1,200 steps are labelled right by completions, 20.0% after correction: the judge removed 30 of 400 "
        "successes."
    )
    assert LABELS.warnings() == ()
    assert LABELS.summary() == (
        "5 solutions of 4 problems, 0.500 [0.250, 0.750] right",
        "labelled right   0.500 [0.250, 0.750] -> 0.200 [0.100, 0.300]  lowered by +0.200 [+0.100, +0.300]",
        "mean soft label  0.200 [0.100, 0.300] -> 0.100  lowered by +0.000 [+0.000, +0.000]",
        "cost: 12,345 tokens, 1.5 seconds",
        headline,
    )
    assert LABELS._repr_html_().count("0.500 [0.250, 0.750]") == 1
    alone = replace(LABELS, names={"judge": "none"}, completions=0, successes=0, unjudged={})
    assert alone.headline() == "50.0% of 1,200 steps are labelled right by completions; no judge corrected them."


def test_labels_are_of_the_call_or_in_the_folder(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert LABELS.labels() == [] and replace(LABELS, folder=tmp_path).labels() == [{"step": 1}, {"step": 2}]
    own = replace(LABELS, rows=[{"step": 3}])
    assert own.labels() == replace(own, folder=tmp_path).labels() == [{"step": 3}]


def test_what_makes_labels_of_steps_doubtful():
    def begins(**changes):
        return [each[:40] for each in replace(LABELS, **changes).warnings()]

    assert begins(successes=0) == ["Not one completion reached the gold answ"]
    assert begins(successes=1000) == ["Every completion reached the gold answer"]
    assert begins(successes=1) == begins(successes=999) == []
    (said,) = replace(LABELS, unjudged={"cut": 151, "unread": 50}).warnings()
    assert said.startswith(
        "201 of 1,000 completions have no outcome and count as failures (151 cut, 50 unread): raise max_new_tokens"
    )
    (said,) = replace(LABELS, judged={"odd": 2, "asked": 10, "unread": 1}).warnings()
    assert said.startswith("3 of 10 answers of the judge could not be used")
    assert begins(judged={}) == []
    (said,) = replace(LABELS, left_out={"without steps": 1, "twice": 1000}).warnings()
    assert said == "Solutions of the model that were not labelled: 1 without steps, 1,000 twice."
    both = replace(LABELS, successes=0, left_out={"twice": 1})
    assert both.headline() == " ".join((*both.warnings(), LABELS.headline().replace("400", "0")))
    assert both.summary()[:2] == both.warnings()


def test_the_plan_of_labelling():
    plan = LabelPlan(
        "m", "j", "v", 3, 1500, 1499, {"samples": 8, "how": "x"}, ({"problem": "ä"},), "a\nb", "9 tokens", ""
    )
    lines = [
        "model: m",
        "judge: j",
        "verifier: v",
        "3 problems; 1,500 solutions, of which 1,499 are given and the model writes the others",
        "the first:",
        '  {"problem": "ä"}',
        "  as the model reads it: 'a\\nb'",
        "settings: samples=8, how='x'",
        "estimate, about: 9 tokens",
    ]
    assert plan.summary() == lines
    given = replace(plan, given=1500, judge_estimate="1 call")
    assert given.summary() == (*lines[:3], lines[3].replace("1,499", "1,500"), *lines[4:8], "estimate, at most: 9 tokens",
                               "the judge, at most: 1 call")  # fmt: skip


def first_errors(split, predictor="model", rule="", **changes):
    given = {
        "thresholds": (0.5,),
        "error_accuracy": 0.5,
        "correct_accuracy": 0.5,
        "f1": HALF,
        "errors": 1,
        "corrects": 1,
    }
    return FirstErrors(split=split, predictor=predictor, rule=rule, data="processbench", **{**given, **changes})


def classes(name, predictor="model", rule="", score=HALF):
    return ErrorClass(name, predictor, rule, (0.4, NAN), 0.5, 0.5, score, 3, 2)


EVALUATION = PrmEvaluation(
    names={"model": "tiny", "data": "some.jsonl"},
    source="",
    trained=True,
    threshold=0.5,
    solutions={"processbench": 1000, "prmbench": 234},
    steps=5000,
    unread=0,
    beyond=0,
    spread=0.5,
    first_errors=(),
    classes=(),
    discrimination=(),
    best_of=(),
    chosen_from={},
    misjudged=(),
)


def test_an_evaluation_of_steps():
    from equipoise.reinforcement.prm_evaluation_result import ALL, ALWAYS, MEAN, MODEL, OTHER_HALF

    found = replace(
        EVALUATION,
        first_errors=(
            first_errors("gsm8k", MODEL),
            first_errors("math", MODEL),
            first_errors(MEAN, MODEL, f1=UP, left_out=("lone", "odd")),
            first_errors("gsm8k", MODEL, OTHER_HALF, thresholds=(0.25, 0.75)),
            first_errors(MEAN, MODEL, OTHER_HALF, thresholds=(0.25, NAN)),
            first_errors("gsm8k", ALWAYS),
            first_errors(MEAN, ALWAYS),
        ),
        classes=(
            classes("circular", MODEL),
            classes(ALL, MODEL, score=UP),
            classes(ALL, MODEL, OTHER_HALF),
            classes(ALL, ALWAYS),
        ),
        discrimination=(
            Discrimination("processbench", "gsm8k", UP, HALF, UP, 1, 1, 0),
            Discrimination("processbench", ALL, HALF, UP, UP, 1, 1, 0),
        ),
        best_of=(BestOf("mean", HALF),),
    )
    headline = (
        "tiny on 1,234 solutions of some.jsonl: first-error F1 0.200 [0.100, 0.300] at 0.5 (processbench without lone, "
        "odd); PRMScore 0.200 [0.100, 0.300] at 0.5; AUROC 0.500 [0.250, 0.750] (processbench)."
    )
    assert found.headline() == headline
    assert found.summary() == (
        f"processbench gsm8k: first-error F1 0.500 [0.250, 0.750]  {MODEL}, at 0.5",
        f"processbench math: first-error F1 0.500 [0.250, 0.750]  {MODEL}, at 0.5",
        f"processbench {MEAN} without lone, odd: first-error F1 0.200 [0.100, 0.300]  {MODEL}, at 0.5",
        f"processbench {MEAN}: first-error F1 0.500 [0.250, 0.750]  {MODEL}, best of the other half (0.250 and 0.500, none "
        "could be chosen)",
        f"processbench {MEAN}: first-error F1 0.500 [0.250, 0.750]  {ALWAYS}, at any threshold",
        f"{ALL}: PRMScore 0.200 [0.100, 0.300]  {MODEL}, at 0.5",
        f"{ALL}: PRMScore 0.500 [0.250, 0.750]  {MODEL}, best of the other half (0.400 and 0.500, none could be chosen)",
        f"{ALL}: PRMScore 0.500 [0.250, 0.750]  {ALWAYS}, at any threshold",
        "processbench gsm8k: AUROC 0.200 [0.100, 0.300], of the position 0.500 [0.250, 0.750]",
        f"processbench {ALL}: AUROC 0.500 [0.250, 0.750], of the position 0.200 [0.100, 0.300]",
        "best of N, mean: 0.500 [0.250, 0.750] solved",
        headline,
    )
    assert EVALUATION.headline() == "tiny on 1,234 solutions of some.jsonl: best of N alone."


def test_what_makes_an_evaluation_of_steps_doubtful():
    from equipoise.reinforcement.prm_evaluation_result import ALL

    assert EVALUATION.warnings() == ()
    assert replace(EVALUATION, spread=0.0).warnings() == (
        "All scores are alike: the model tells no step from another.",
    )
    assert replace(EVALUATION, spread=0.0, trained=False).warnings()[0].startswith("tiny is no process reward model")

    def of(gain, model=HALF, split=ALL):
        return replace(EVALUATION, discrimination=(Discrimination("d", split, model, HALF, gain, 1, 1, 0),)).warnings()

    assert of(FLAT) == (
        "On d the model is not shown to tell right steps from wrong ones better than their position alone does: AUROC "
        "0.500 [0.250, 0.750], higher by +0.000 [+0.000, +0.000].",
    )
    assert of(Bounded(0.0, NAN, NAN))[0].endswith("higher by +0.000.")  # too few problems for an interval
    assert of(UNSURE) == of(UP) == of(FLAT, split="math") == of(FLAT, model=Bounded(NAN, NAN, NAN)) == ()
    assert replace(EVALUATION, unread=1000).warnings() == (
        "1,000 of 5,000 steps do not fit into the model's context: they count as missed.",
    )


def test_the_plan_of_an_evaluation():
    plan = PrmEvaluationPlan("m", True, {"trl": 1000}, 2000, 3, 40000, "x\n")
    lines = ("trl: 1,000 solutions", "2,000 steps, 40,000 tokens; 3 steps do not fit into the context",
             "the first as the model reads it:", "  'x\\n'")  # fmt: skip
    assert plan.summary() == ("m", *lines)
    untrained = replace(plan, trained=False).summary()
    assert untrained[1] == "no process reward model: the tokens would be added in memory, and every score be 0.5"
    assert (untrained[0], *untrained[2:]) == ("m", *lines)


SCORES = StepScores(
    names={"model": "tiny"},
    source="",
    format="csv",
    solutions=1000,
    steps=2000,
    unread=0,
    mean=0.25,
    spread=1e-3,
    shares={"0.5": 0.25, "0.9": NAN},
    by_place=(),
    threshold=None,
    flagged=None,
    lowest=tuple(ScoredStep("a", "p", at, "word " * 30, 0.125 * at) for at in range(4)),
)


def test_scores_of_steps():
    headline = "2,000 steps of 1,000 solutions: by tiny a step is right with a probability of 0.250 in the mean."
    lines = SCORES.summary()
    assert (lines[0], lines[-1]) == ("scored at least: 0.5: 25%, 0.9: –", headline)
    assert [line[:17] for line in lines[1:-1]] == [f"{0.125 * at:.3f}  a, step {at}:"[:17] for at in range(3)]
    assert all(len(line) <= len("0.000  a, step 0: ") + 80 and line.endswith("...") for line in lines[1:-1])
    assert SCORES.warnings() == ()
    alike = replace(SCORES, spread=0.9e-3)
    assert alike.headline() == (
        "All scores are alike (0.250): the model tells no step from another. Was it trained by prm train? " + headline
    )
    flagged = replace(SCORES, threshold=0.0, flagged=1000, unread=7)
    assert flagged.headline() == (
        "7 of 2,000 steps do not fit into the model's context and have no score; their score is null. "
        f"{headline} 1,000 solutions have a step below 0."
    )
    trl = replace(flagged, format="trl", threshold=0.5).headline()
    assert trl.endswith(
        "1,000 solutions have a step below 0.5. In stepwise.jsonl a step is labelled right from 0.5 on."
    )
    assert "they are left out of stepwise.jsonl." in trl


def test_the_plan_of_scoring():
    plan = StepScoresPlan("m", 1000, 2000, 0, 30000, "x\n")
    first = ("m", "1,000 solutions, 2,000 steps, 30,000 tokens")
    last = ("the first as the model reads it:", "  'x\\n'")
    assert plan.summary() == (*first, *last)
    assert replace(plan, unread=1).summary() == (
        *first, "1 of the steps do not fit into the model's context and would have no score", *last
    )  # fmt: skip


STAGE = TrainedStage(
    number=1,
    steps=1000,
    positives=3,
    negatives=2,
    soft=0,
    loss=0.25,
    held_out_loss=0.5,
    auroc=Bounded(0.7, 0.6, 0.8),
    gain=UP,
    right_score=0.6,
    wrong_score=0.4,
    positives_kept=NAN,
    negatives_kept=NAN,
    moved=0.01,
)
TRAINED = PrmTrained(
    names={"labels": "l.jsonl"},
    source="",
    settings={"stages": 2, "seed": 0},
    labelled_by=("hard",),
    counts={"to learn from": {"steps": 4000}},
    cut=0,
    weights=(1.0, 1.0),
    stages=(replace(STAGE, positives_kept=0.75, negatives_kept=NAN, moved=0.0, auroc=HALF), replace(STAGE, number=2)),
    stopped="",
    drift="",
    disputed=(),
    trained_parameters=7,
)


def test_a_training_on_steps():
    headline = "2 of 2 stages on 4,000 labelled steps of l.jsonl: AUROC 0.700 [0.600, 0.800] on problems held out."
    one = "1,000 steps, loss 0.250, held out 0.500, AUROC 0.700 [0.600, 0.800]"
    assert TRAINED.summary() == (
        "settings: stages=2, seed=0",
        "stage 1: 1,000 steps, loss 0.250, held out 0.500, AUROC 0.500 [0.250, 0.750]; labels kept: right 75%, wrong none "
        "there",
        f"stage 2: {one}",
        headline,
    )
    drifting = replace(TRAINED, drift="They drift.", stopped="It stopped.", cut=1000)
    assert drifting.summary()[-2:] == ("They drift.", drifting.headline())
    cut = "1,000 labelled steps lie beyond max_length or the model's context: they were not learnt."
    assert drifting.headline() == f"{cut} {headline} It stopped." and drifting.warnings() == (cut, "They drift.")


def test_what_makes_a_training_on_steps_doubtful():
    def begins(**changes):
        stages = (*TRAINED.stages[:-1], replace(TRAINED.stages[-1], **changes))
        return [each[:70] for each in replace(TRAINED, stages=stages).warnings()]

    assert begins() == []
    assert begins(moved=0.0099) == ["Only 0.99% of the trained weights changed: use a larger learning rate,"]
    assert begins(auroc=Bounded(NAN, NAN, NAN)) == [
        "How well it tells right steps from wrong ones is not known: no held-ou"
    ]
    chance = ["On problems held out the model is not shown to tell right steps from wrong ones better than chance"[:70]]
    assert begins(auroc=Bounded(0.7, 0.5, 0.8)) == begins(auroc=Bounded(0.5, NAN, NAN)) == chance
    assert begins(auroc=Bounded(0.6, NAN, NAN), gain=UNSURE) == []
    (said,) = replace(TRAINED, stages=(replace(STAGE, gain=Bounded(0.1, 0.0, 0.2)),)).warnings()
    assert said.endswith("does: its AUROC 0.700 [0.600, 0.800] is higher by +0.100 [+0.000, +0.200].")


def test_the_plan_of_a_training_on_steps():
    plan = PrmTrainingPlan(
        "m", {"stages": 3}, ("hard", "soft"), {"held out": {"problems": 1000, "steps": 2}}, 3000, 4, 0, 5000, 60, 7000,
        (1.0, 1.0), "", "x\n",
    )  # fmt: skip
    lines = (
        "m",
        "labels: hard, soft; 3,000 right, 4 wrong",
        "held out: 1,000 problems, 2 steps",
        "the first as the model reads it:",
        "  'x\\n'",
        "settings: stages=3",
        "trained parameters: 7,000; 3 stages of 60 steps",
        "estimate, at most: 15,000 tokens to learn from",
    )
    assert plan.summary() == lines
    more = replace(plan, cut=1000, drift="They drift.").summary()
    assert more == (*lines[:3], "1,000 labelled steps lie beyond max_length or the model's context", *lines[3:6],
                    "They drift.", *lines[6:])  # fmt: skip


def share(count, of, lower=NAN, upper=NAN):
    return Share(count, of, 0, of, lower, upper)


def use(tool, **changes):
    given = {
        "calls": 1000, "steps": 10, "lowered": share(3, 6, 0.25, 0.75), "change": HALF, "duplicate": share(1, 1000),
        "copied": 0.0, "unanswered": 0, "right": 5, "anyway": 0, "needless": 1, "tokens": 90.0, "needless_tokens": 1.0,
        "seconds": NAN, "needless_seconds": NAN, "price": NAN, "needless_price": NAN,
    }  # fmt: skip
    return ToolUse(tool=tool, **{**given, **changes})


AUDIT = ToolAudit(
    names={},
    source="",
    against="previous",
    margin=0.0,
    counts={"traces": 1, "right": 1, "wrong": 0, "steps": 12},
    overall=use("all tools"),
    tools=(use("search"),),
    path=(),
    undecided={OVERLAP: 1, SHORT: 5},
    width=NAN,
    calibration=Bounded(0.6, 0.4, 0.8),
    calibrated={},
    useless=(),
    useless_count=0,
    estimated=False,
)


def test_an_audit_of_tools():
    headline = (
        "1,000 calls in 1 trace; 50% of the decided steps lowered uncertainty; 1 call repeats an earlier one; 1 of 5 in "
        "right traces counts as needless (1 token)."
    )
    assert AUDIT.summary() == (
        "search: 1,000 calls, lowered uncertainty 50% [25%, 75%], repeats 0%, needless 1",
        "AUROC of the fall of entropy for right against wrong traces: 0.600 [0.400, 0.800]",
        headline,
    )
    several = replace(
        AUDIT,
        tools=tuple(use(str(number)) for number in range(14)),
        calibration=Bounded(NAN, NAN, NAN),
        overall=use(
            "all", calls=1, lowered=share(0, 6), duplicate=share(2, 4), needless=2,
            needless_tokens=2.6, needless_seconds=60.0, needless_price=1234.5,
        ),
        counts={"traces": 2, "right": 0, "wrong": 1, "steps": 12},
    )  # fmt: skip
    lines = several.summary()
    assert len(lines) == 14 and lines[11].startswith("11: ") and lines[12] == "and 2 more tools"
    assert lines[13] == (
        "1 call in 2 traces; 0% of the decided steps lowered uncertainty; 2 calls repeat an earlier one; 2 of 5 in right "
        "traces count as needless (3 tokens, 1:00, a logged price of 1,234)."
    )
    assert len(replace(AUDIT, tools=several.tools[:12]).summary()) == 14
    assert replace(several, tools=several.tools[:13]).summary()[12] == "and 1 more tools"
    nothing = use("all", lowered=share(0, 0), right=0, duplicate=share(0, 4))
    assert replace(AUDIT, overall=nothing, counts={**AUDIT.counts, "steps": 0}).headline() == (
        "1,000 calls in 1 trace; 0 calls repeat an earlier one."
    )


def test_what_makes_an_audit_of_tools_doubtful():
    assert AUDIT.warnings() == ()
    (said,) = replace(AUDIT, counts={**AUDIT.counts, "steps": 13}).warnings()
    assert said.startswith("Only 6 of 13 steps are decided, the others mostly not since the model wrote fewer than 5")
    for right, wrong, ungraded in ((0, 0, True), (1, 0, False), (0, 1, False), (1, 1, False)):
        said = replace(AUDIT, counts={**AUDIT.counts, "right": right, "wrong": wrong}).warnings()
        assert [each[:35] for each in said] == ["No trace says how it ended: without"] * ungraded
    assert replace(AUDIT, calibration=Bounded(0.4, 0.3, 0.5)).warnings() == ()
    (said,) = replace(AUDIT, calibration=Bounded(0.4, 0.3, 0.499)).warnings()
    assert said.startswith("Entropy fell more in wrong traces than in right ones (AUROC 0.400)")


def test_numbers_of_an_audit():
    assert [between(each, 2) for each in (HALF, UNSURE, Bounded(NAN, 0.0, 1.0))] == ["0.50 [0.25, 0.75]", "0.10", "–"]
    assert between(Bounded(0.1, 0.0, NAN)) == "0.100"
    assert between(HALF, signed=True) == "+0.500 [+0.250, +0.750]"
    plan = ToolAuditPlan("logs", 1000, 2000, 3000, 4000, 5000, NAN)
    told = ("logs", "1,000 traces, 2,000 calls of 3,000 tools")
    assert plan.summary() == (*told, "4,000 texts with the log-probabilities of alternatives")
    assert replace(plan, seconds=60.0).summary() == (*told, "one pass a trace, 5,000 tokens: 1:00")


def measures(brier):
    return {"Brier": Bounded(brier, NAN, NAN), "AUROC": HALF}


SOLVABLE = Solvable(
    names={"model": "models/tiny"},
    source="",
    settings={},
    problems={"test": 1000},
    solved=HALF,
    floor=0.0,
    measures={"critic": measures(0.1), "mean rate": measures(0.25)},
    gains={"mean rate": {"Brier": UP}, "prompt length": {"Brier": UP}},
    slope=1.0,
    intercept=0.0,
    spread=(0.0, 1.0),
    bins=(),
    coverages=(),
    thresholds=(Threshold(0.5, 0.25, HALF, UP), Threshold(0.95, NAN, FLAT, FLAT)),
    surprises=(),
    path=(),
    steps=1,
    kept_step=1,
    critic_parameters=1,
    tokens=1,
    calls=0,
)


def test_a_scorer_of_prompts():
    headline = (
        "Whether tiny solves one of 1,000 new problems at one try: Brier score 0.100 against 0.250 of the mean rate alone, "
        "lower by +0.200 [+0.100, +0.300]; AUROC 0.500 [0.250, 0.750]."
    )
    assert SOLVABLE.summary() == (
        "solved at one try: 0.500 [0.250, 0.750] of the test problems",
        "critic     Brier 0.100  AUROC 0.500",
        "mean rate  Brier 0.250  AUROC 0.500",
        "to solve 50% of what is kept: p >= 0.250 keeps 0.500 [0.250, 0.750], of which 0.200 [0.100, 0.300] are solved",
        "to solve 95% of what is kept: no threshold reached it",
        headline,
    )
    few = replace(SOLVABLE, measures={**SOLVABLE.measures, "critic": {**measures(0.1), "AUROC": UNSURE}})
    assert few.headline().endswith("; AUROC 0.100.")
    assert SOLVABLE._repr_html_().count("0.500 [0.250, 0.750]") == 2


def test_what_makes_a_scorer_doubtful():
    def said(mean_rate, length=UP, **changes):
        gains = {"mean rate": {"Brier": mean_rate}, "prompt length": {"Brier": length}}
        return replace(SOLVABLE, gains=gains, **changes).warnings()

    assert said(UP) == ()
    (first,) = said(FLAT, DOWN)
    assert first == (
        "The critic is not shown to predict better than the mean solve rate alone: its Brier score is lower by +0.000 "
        "[+0.000, +0.000]. Use more prompts, more samples a prompt, more epochs, a larger critic, or prompts that differ "
        "more in how difficult they are."
    )
    assert said(DOWN)[0].startswith(
        "The critic predicts worse than the mean solve rate alone: its Brier score is lower by -"
    )
    (length,) = said(UP, FLAT)
    assert length.startswith("The critic is not shown to predict better than the length of the prompt alone: its Brier")
    assert said(UP, DOWN)[0].startswith("The critic predicts worse than the length of the prompt alone")
    # As near to the floor as 2 % of the score: 0.245 of 0.25.
    solved = {"critic": measures(0.0), "mean rate": measures(0.0)}
    assert "hardly differ" in said(FLAT, measures=solved)[0]
    assert "hardly differ" in said(FLAT, floor=0.2451)[0] and "hardly differ" not in said(FLAT, floor=0.2449)[0]


def test_the_plan_of_a_scorer():
    plan = SolvablePlan("m", "c", "v", {"fit": 1000, "test": 2}, {"seed": 0}, ({"prompt": "ä"},), "x\n", 5000, "1 call")
    assert plan.summary() == (
        "asked: m",
        "critic: c (5,000 parameters)",
        "problems: 1,000 fit, 2 test",
        "the first:",
        '  {"prompt": "ä"}',
        "  as the critic reads it: 'x\\n'",
        "verifier: v",
        "settings: seed=0",
        "estimate, at most: 1 call",
    )


PREDICTED = SolvableScores(
    names={"scorer": "s"},
    model="tiny",
    prompts=1000,
    expected=0.5,
    shares={"0.5": 0.25, "0.9": 0.125},
    outside=0.1,
    targets=(Target(0.5, 0.25, 0.75), Target(0.9, NAN, 0.0)),
    kept=None,
    keep=None,
    extremes=(Predicted("a", "p", 0.5),),
    doubts=(),
)


def test_predictions_for_prompts():
    headline = "Of 1,000 prompts tiny should solve 50.0% at one try, by the scorer s."
    assert PREDICTED.summary() == (
        "predicted at least: 0.5: 25%, 0.9: 12%",
        "to solve 50% of what is kept: p >= 0.250 keeps 75% of these prompts",
        "to solve 90% of what is kept: no threshold reached it",
        headline,
    )
    kept = replace(PREDICTED, kept=1000, keep="0.2 to 0.8")
    assert kept.headline() == f"{headline} 1,000 of them lie within 0.2 to 0.8 and are in kept.jsonl."
    assert kept.warnings() == () and replace(kept, kept=1).warnings() == ()
    doubtful = replace(kept, kept=0, outside=0.11, doubts=("It is none.",))
    assert doubtful.warnings() == (
        "Of the scorer itself: It is none.",
        "11% of the prompts have predictions beyond all that the scorer was tested with: how right it is there is not "
        "known.",
        "No prompt has a prediction within 0.2 to 0.8: kept.jsonl is empty.",
    )
    assert doubtful.summary()[:3] == doubtful.warnings()
    plan = ScoresPlan("s", "m", 1000, 2000, "x\n", ("It is none.",))
    assert plan.summary() == (
        "It is none.", "scorer: s, of m", "1,000 prompts, 2,000 tokens; the first as the scorer reads it:", "  'x\\n'"
    )  # fmt: skip


REINFORCED = Reinforced(
    recipe={"advantage": "grpo"},
    resolved={"steps": 5, "seed": 0},
    method="grpo",
    verifier="v",
    before={"pass@1": HALF, "reward": UNSURE},
    after={"pass@1": UP, "reward": HALF},
    changes={"pass@1": UP, "reward": FLAT},
    path=(),
    answers=tuple(Answered("p" * 150, "g" * 60, "", "a", 0.0, 1.0) for _ in range(3)),
    lengths={},
    problems={},
    steps=5,
    alike=0.99,
    moved=0.01,
    tokens={"training": 1000},
    source="",
    names={"prompts": "q.jsonl"},
    critic=False,
)


def test_a_reinforcement():
    headline = "5 steps of grpo on q.jsonl, 1,000 generated tokens; 1% of the trained weights moved."
    lines = REINFORCED.summary()
    assert lines[:3] == (
        "recipe: steps=5, seed=0",
        "pass@1  0.500 [0.250, 0.750] -> 0.200 [0.100, 0.300]  change +0.200 [+0.100, +0.300]",
        "reward  0.100 -> 0.500 [0.250, 0.750]  change +0.000 [+0.000, +0.000]",
    )
    assert lines[3] == lines[5] == f"prompt: {'p' * 97}... (gold: {'g' * 37}...)"
    assert lines[4] == lines[6] == "  before: (nothing)   after: a"
    assert len(lines) == 8 and lines[-1] == headline
    selected = Selected("uniform", GroupCounts(4, 2, 8), 0, 0, None)
    assert replace(REINFORCED, selected=selected).summary() == (*lines[:-1], *selected.sentences(), headline)


def test_what_makes_a_reinforcement_doubtful():
    def begins(**changes):
        return [each[:45] for each in replace(REINFORCED, **changes).warnings()]

    assert begins() == []
    assert begins(alike=1.0) == ["All responses had the same reward, from which"]
    assert begins(alike=1.0, within=True) == ["All responses to a prompt had the same reward"]
    assert begins(moved=0.0099) == ["Only 0.99% of the trained weights changed: us"]
    rose = ["No measure rose by more than its interval: mo"]
    assert begins(changes={"pass@1": FLAT, "reward": FLAT}) == rose
    assert begins(changes={"pass@1": FLAT, "reward": FLAT}, alike=1.0) == begins(alike=1.0)
    assert begins(changes={"pass@1": Bounded(-0.1, -0.2, 0.0), "reward": FLAT}) == rose
    assert replace(REINFORCED, changes={"pass@1": DOWN, "reward": UP}).warnings() == (
        "Fallen by more than chance explains: pass@1 from 0.500 to 0.200.",
    )


def test_the_plan_of_a_reinforcement():
    plan = ReinforcePlan(
        "m", {"steps": 5}, "v", {"train": 1000}, ({"prompt": "ä"},), "x\n", 2000, 3000, 4000, 60.0, ("A note.",)
    )
    assert plan.summary() == (
        "m",
        "train: 1,000 problems",
        "the first:",
        '  {"prompt": "ä"}',
        "  as the model reads it: 'x\\n'",
        "verifier: v",
        "recipe: steps=5",
        "trained parameters: 2,000, of a critic: 3,000",
        "A note.",
        "estimate, at most: 4,000 generated tokens, 1:00",
    )


def test_what_selection_and_replay_brought():
    """Of 8 responses in 4 groups; the counts of half a response are rounded down."""
    found = Selected("uniform", GroupCounts(3, 2, 8), 1000, 0, None)
    first = (
        "Of 8 responses written to learn from, 5 (67%) taught something, since others to the same prompt had another "
        "reward; 3 were wasted."
    )
    assert found.sentences() == (first, "1,000 groups came again from earlier steps: 100% of what was learnt from.")
    assert found.replayed_share == 1000 / 1003 and math.isnan(found.rollouts_saved)
    nothing = Selected("uniform", GroupCounts(), 0, 0, None)
    assert nothing.sentences() == (
        first.replace("8 resp", "0 resp").replace("5 (67%)", "0").replace("3 were", "0 were"),
    )
