"""GUARD on the scales: what weighing the forget records by their alignment with the retain set keeps, and what it leaves.

Per seed a small model is taught fictional people, of whom eight are to be forgotten: four share facts with many people to
keep, four with nobody. Every arm is the same ascent on the same batches at the same rate, with other weights of the forget
records, computed once. It is judged after equal steps and where the forget set is likelier by 0.15 than for a model that was
never told; what is left of single records is counted beside it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, matched, not_worse, study

ABSTRACT = "arXiv:2506.10946, abstract"
OURS = "control of ours"
RETAINED = (
    "2 points of probability: half of what an ascent of one epoch costs is the least that a pass for scores is worth"
)
COMPARABLE = "5 points of probability is what one would still call comparable forgetting"
# Both bases at one rate, the same for every arm: a weighting is compared with none, not with another rate.
RATE = {"gd": 3e-4, "ga": 2.5e-4}
# Five sixths of what there is to forget. Forty steps brought guard to it in five of seven seeds, and to 0 in three of five.
LEVEL = 0.15


@study("guard", paper="arXiv:2506.10946", trades="the forgetting of single records for retention")
def guard(
    steps: Annotated[int, Field(ge=4, le=10_000)] = 80,
    batch_size: Annotated[int, Field(ge=1, le=120)] = 16,
    evaluations: Annotated[int, Field(ge=2, le=100)] = 26,
) -> Study:
    """Forget records weighed by alignment, at several temperatures, against equal, permuted, flipped and norm weights."""

    def arm(
        name: str,
        kind: Literal["method", "baseline", "control"],
        base: str = "gd",
        weigh: str = "guard",
        **words: Any,
    ) -> Arm:
        return Arm(name, kind=kind, base=base, weigh=weigh, **words)

    def matched_retention(text: str, arm: str, rival: str, source: str, *, primary: bool) -> Claim:
        test = matched(
            "forget_excess",
            arm=arm,
            rival=rival,
            judge="retain_probability",
            level=LEVEL,
            margin=0.02,
            reason=RETAINED,
        )
        return Claim(text, source=source, primary=primary, test=test)

    return Study(
        seeds=7,
        first_seed=12,  # 0 to 11 were spent on a level of 0 and on forty steps, too few; 1000 was looked at in building
        budget="optimizer_steps",
        scale="A Llama of about 1 M parameters, taught fictional people on the spot; effects at this scale say nothing of "
        "models a thousand times larger, nor of real TOFU.",
        prepare=teach,
        arms=[
            arm("guard", "method", temperature=2.0),
            arm("guard-10", "method", temperature=10.0),
            arm("guard-1", "method", temperature=1.0),
            arm("guard-cosine-clipped", "method", temperature=2.0, variant="cosine-clipped"),
            arm("guard-ga", "method", "ga", temperature=2.0),
            arm("graddiff", "baseline", weigh="uniform"),
            arm("ga", "baseline", "ga", weigh="uniform"),
            arm("permuted", "control", temperature=2.0, variant="permuted"),
            arm("flipped", "control", temperature=2.0, variant="flipped"),
            arm("norm", "control", temperature=2.0, variant="norm"),
        ],
        outcomes=[
            Outcome(
                "forget_excess",
                better="lower",
                description="probability of a forget answer above that for a model that was never told",
            ),
            Outcome("retain_probability", better="higher", description="of the answers on the rehearsed neighbours"),
            Outcome(
                "retain_truth",
                better="higher",
                description="max(0, 1 - truth ratio) on neighbours who were taught and never rehearsed",
            ),
            Outcome("still_known", better="lower", description="forget answers likelier than for a model never told"),
            Outcome("worst_excess", better="lower", description="forget_excess of the record forgotten least"),
            Outcome("sharing_excess", better="lower", description="of the four who share facts with people to keep"),
            Outcome("apart_excess", better="lower", description="of the four who share none"),
            Outcome("general_loss", better="lower", unit="nats/token", description="on general sentences"),
            Outcome(
                "effective_sample", better="higher", description="(sum w)^2 / sum w^2 over n; 1 where all weigh alike"
            ),
        ],
        claims=[
            Claim(
                "At equal steps, GUARD keeps more of the truth ratio of people to keep than gradient difference.",
                source=ABSTRACT,
                test=better("retain_truth", arm="guard", rival="graddiff", margin=0.02, reason=RETAINED),
            ),
            Claim(
                "At equal steps, it forgets comparably.",
                source=ABSTRACT,
                test=not_worse("forget_excess", arm="guard", rival="graddiff", margin=0.05, reason=COMPARABLE),
            ),
            matched_retention(
                "At equal forgetting, GUARD keeps more than gradient difference.",
                "guard",
                "graddiff",
                "follows from both statements of the abstract",
                primary=True,
            ),
            matched_retention(
                "At equal forgetting, GUARD keeps more than plain ascent when both ascend.",
                "guard-ga",
                "ga",
                "card, known in advance",
                primary=False,
            ),
            matched_retention(
                "It is the alignment that matters: the same weights on other records keep less.",
                "guard",
                "permuted",
                OURS,
                primary=False,
            ),
            matched_retention(
                "Scores turned around keep less at equal forgetting.", "guard", "flipped", OURS, primary=False
            ),
            matched_retention(
                "Alignment keeps more than weights by gradient norm alone.", "guard", "norm", OURS, primary=False
            ),
            Claim(
                "No more records are still known than without weights.",
                source=OURS,
                primary=False,
                test=not_worse(
                    "still_known",
                    arm="guard",
                    rival="graddiff",
                    margin=0.05,
                    reason="one record in twenty is one person's fact too many",
                ),
            ),
            Claim(
                "Reduces the utility sacrifice on TOFU's retain set by up to 194.92 % in truth ratio.",
                source=ABSTRACT,
                untested="needs TOFU and its fine-tuned Llama-2 and Phi models; losses and temperature are not published",
            ),
            Claim(
                "Improves knowledge retention on MUSE News by 16.20 %.",
                source="arXiv:2506.10946v2, abstract",
                untested="needs MUSE News, of which the retain texts are not public here, and a 7 B model",
            ),
        ],
        run=unlearn,
    )


def teach(preparation: Preparation) -> None:
    """The model that knows everybody, and the oracle that was never told."""
    from equipoise.unlearning import guard_world

    guard_world.teach(preparation)


def unlearn(run: Run) -> None:
    """One arm: weigh, ascend, measure along the way."""
    import torch

    from equipoise.training.order import pairs, spend_pairs
    from equipoise.unlearning import guard as method
    from equipoise.unlearning import guard_world
    from equipoise.unlearning.recipe import Recipe
    from equipoise.unlearning.training import prepare, train

    steps, batch_size = run.options["steps"], run.options["batch_size"]
    words = {name: value for name, value in run.settings.items() if name != "base"}
    recipe = Recipe(
        objective="ga",
        combine="sum",
        retain_weight=0.0 if run.settings["base"] == "ga" else 1.0,
        learning_rate=RATE[run.settings["base"]],
        steps=steps,
        batch_size=batch_size,
        seed=run.seed,
        **words,
    )
    setting = guard_world.open_setting(run.seed, run.prepared)
    language_model = prepare(setting.language_model, recipe)
    stored = run.resume() or {"training": None, "weights": None}
    weights = stored["weights"]
    if weights is None and recipe.weigh == "guard":
        weights = method.weigh(language_model, recipe, setting.forget, setting.retain).weights
        scored = sum(len(example.input_ids) for example in [*setting.retain, *setting.forget, *setting.forget])
        run.spend(phase="build", scored_tokens=scored)
    if stored["training"] is None:
        effective = 1.0 if weights is None else method.effective_sample_size(weights) / len(weights)
        run.measure("effective_sample", effective, at={"step": 0})
        setting.measure(run, 0)
    order = pairs(len(setting.forget), len(setting.retain), batch_size, run.seed)
    every = max(steps // run.options["evaluations"], 1)

    def look(moment) -> None:
        spend_pairs(run, order(moment.step - 1), setting.forget, setting.retain)
        if moment.step % every == 0 or moment.step == steps:
            setting.measure(run, moment.step)

    train(
        language_model,
        recipe,
        setting.forget,
        setting.retain,
        weights=torch.ones(len(setting.forget), dtype=torch.float64) if weights is None else weights,
        callbacks=[look],
        save=lambda state: run.checkpoint({"training": state, "weights": weights}),
        save_every=every,
        state=stored["training"],
    )
