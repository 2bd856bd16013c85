"""Every method of forgetting of the house on one frontier: what it forgets, what it keeps, and what an attack brings back.

Per seed a world of fictional people is generated and a small model is taught it, and another that is never told of the eight
to forget. Every arm is a preset of `equipoise unlearn` as it stands, but for its rate, of which two are tried by one rule;
all see the same batches for the same number of steps. Along the way copies are attacked by a few steps of relearning on the
records of one of the eight, and the other seven are asked for; at the end also by as many steps on unrelated text, by ten
times as many, and by rounding to 4 bits.

The strongest relearning brings back everything of every method (the study `mcu`), so resistance is asked at a small cost of
the attack, and the long one is shown beside it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, matched, study

OURS = "question of ours"
TRADE = "5 points: four of the seventy questions asked of a seed, or six of those on neighbours"
LEVEL = 0.5  # where exploratory comparisons stand, so that all arms are seen at one place; chance is 0.25
# Two rates a method. What trains a few matrices or an adapter takes larger ones, and so do losses that fade as they forget:
# after 100 steps at 1e-3 UNDIAL still answered 0.93, SatImp 0.76, WGA 0.71, and DPO at 3e-4 0.99 (seed 1000). Steps of one
# length have no rate.
FULL: dict[str, Any] = {"learning_rate": [3e-4, 1e-3]}
FEW: dict[str, Any] = {"learning_rate": [3e-3, 1e-2]}
HIGHER: dict[str, Any] = {"learning_rate": [1e-3, 3e-3]}
LENGTH: dict[str, Any] = {"update_length": [0.2, 0.5]}


@study(
    "unlearning",
    paper="several papers",
    trades="forgetting for retention and resistance",
)
def unlearning(
    steps: Annotated[int, Field(ge=4, le=10_000)] = 100,
    batch_size: Annotated[int, Field(ge=1, le=120)] = 8,
    evaluations: Annotated[int, Field(ge=2, le=100)] = 10,
    attack_steps: Annotated[int, Field(ge=1, le=1000)] = 4,
    long_attack: Annotated[int, Field(ge=1, le=10_000)] = 40,
) -> Study:
    """All methods at equal steps and equal forgetting: what is kept, and what comes back after attacks of a stated cost."""

    def arm(
        name: str, grid: dict[str, Any] = FULL, kind: Literal["method", "baseline"] = "method", **words: Any
    ) -> Arm:
        return Arm(name, kind=kind, grid=grid, method=name, **words)

    # A method more is a line more: it gets its comparisons below. With NPO both sides weigh alike, as for gradient
    # difference; the preset's 0.1 is of WMDP, and at a rate of 1e-3 it left nothing of the neighbours (seed 1000).
    methods = [
        arm("npo", retain_weight=1.0),
        arm("simnpo"),
        arm("ihl"),
        arm("dpo", HIGHER),
        arm("undial", HIGHER),
        arm("wga", HIGHER),
        arm("satimp", HIGHER),
        arm("ce-u"),
        arm("rmu", FEW),
        arm("sago"),
        arm("pcgrad"),
        arm("gru-core", retain_weight=1.0),
        arm("blur"),
        arm("npo-sam", retain_weight=1.0),
        arm("guard"),
        arm("mlp-breaking", LENGTH, retain_learning_rate=0.2),
        arm("mcu", LENGTH, retain_learning_rate=0.2),
        arm("fila", HIGHER, lora_rank=8),
        arm("reglu", HIGHER, lora_rank=8),
    ]

    def better_at_equal_forgetting(judge: str, arm: str) -> Any:
        return matched(
            "forget_accuracy", arm=arm, rival="graddiff", judge=judge, level=LEVEL, margin=0.05, reason=TRADE
        )

    def exploratory(text: str, test: Any) -> Claim:
        return Claim(text, source=OURS, primary=False, test=test)

    return Study(
        seeds=5,
        first_seed=200,
        budget="optimizer_steps",
        scale="A Llama of about 1 M parameters, taught fictional people on the spot; effects at this scale say nothing of "
        "models a thousand times larger.",
        prepare=teach,
        arms=[
            arm("graddiff", kind="baseline"),
            *methods,
            Arm(
                "retain-only",
                kind="control",
                fixed="it forgets nothing by which a rate could be chosen",
                method="graddiff",
                forget_weight=0.0,
                learning_rate=1e-3,
            ),
            Arm("never-told", kind="reference", fixed="it is another model, which nothing is done to", method=None),
        ],
        select=Select("retain_accuracy", split="validation", seeds=1, matched="forget_accuracy", level=LEVEL),
        outcomes=[
            Outcome("forget_accuracy", better="lower", chance=0.25, description="questions on the people to forget"),
            Outcome("retain_accuracy", better="higher", chance=0.25, description="questions on their neighbours"),
            Outcome(
                "relearned_accuracy",
                better="lower",
                chance=0.25,
                description="questions on seven people to forget, after a few steps on the eighth",
            ),
            Outcome("regained", better="lower", description="relearned_accuracy less what it was before, by question"),
            Outcome(
                "relearned_long", better="lower", chance=0.25, description="the same after ten times as many steps"
            ),
            Outcome(
                "unrelated_accuracy",
                better="lower",
                chance=0.25,
                description="the same after steps on general sentences",
            ),
            Outcome("quantised_accuracy", better="lower", chance=0.25, description="the same after rounding to 4 bits"),
            Outcome(
                "general_accuracy", better="higher", chance=0.25, description="questions on people who share nothing"
            ),
            Outcome(
                "forget_log_probability", better="lower", unit="nats/token", description="of the answers to forget"
            ),
            Outcome("general_loss", better="lower", unit="nats/token", description="on general sentences"),
        ],
        # Two with a verdict: a third would widen their intervals, of five seeds, by an eighth.
        claims=[
            Claim(
                "At equal forgetting, a few steps of relearning bring back less after NPO with SAM than after NPO.",
                source="arXiv:2502.05374, abstract",
                test=matched("forget_accuracy", arm="npo-sam", rival="npo", judge="relearned_accuracy"),
            ),
            Claim(
                "What tuned gradient difference forgets was hidden: relearning one person brings back more of the others "
                "than it brings out of a model that was never told.",
                source=OURS,
                test=better("regained", arm="never-told", rival="graddiff", margin=0.05, reason=TRADE),
            ),
            *(
                exploratory(
                    f"At equal forgetting, {each.name} keeps more of the neighbours than tuned gradient difference.",
                    better_at_equal_forgetting("retain_accuracy", each.name),
                )
                for each in methods
            ),
            *(
                exploratory(
                    f"At equal forgetting, a few steps of relearning bring back less after {each.name} than after tuned "
                    "gradient difference.",
                    better_at_equal_forgetting("relearned_accuracy", each.name),
                )
                for each in methods
            ),
        ],
        run=unlearn,
    )


def teach(preparation: Preparation) -> None:
    """The model that knows everybody, and the one that was never told of those to forget."""
    from equipoise.unlearning import frontier_world

    frontier_world.teach(preparation)


def unlearn(run: Run) -> None:
    """One arm: forget on the seed's batches; measure, and attack copies, along the way."""
    from equipoise.training.order import pairs, spend_pairs
    from equipoise.unlearning import frontier_world
    from equipoise.unlearning.recipe import recipe
    from equipoise.unlearning.training import prepare, train

    steps, batch_size = run.options["steps"], run.options["batch_size"]
    words = {name: value for name, value in run.settings.items() if name != "method"}
    told = run.settings["method"] is not None
    setting = frontier_world.open_setting(run.seed, run.prepared, told=told)
    attacker = frontier_world.attacker(run.seed, run.options["attack_steps"], run.options["long_attack"])
    if not told:
        setting.measure(run, 0)
        attacker.measure(run, setting.language_model, 0, last=True)
        return
    chosen = recipe(run.settings["method"], steps=steps, batch_size=batch_size, seed=run.seed, **words)
    refusals = frontier_world.refusals(setting.language_model, chosen)
    language_model = prepare(setting.language_model, chosen)
    stored = run.resume() or {"training": None}
    order = pairs(len(setting.forget), len(setting.retain), batch_size, run.seed)
    every = max(steps // run.options["evaluations"], 1)
    if stored["training"] is None:
        setting.measure(run, 0)
        attacker.measure(run, language_model, 0, last=False)

    def look(moment) -> None:
        spend_pairs(run, order(moment.step - 1), setting.forget, setting.retain, refusals)
        if moment.step % every == 0 or moment.step == steps:
            setting.measure(run, moment.step)
            attacker.measure(run, language_model, moment.step, last=moment.step == steps)

    train(
        language_model,
        chosen,
        setting.forget,
        setting.retain,
        refusals=refusals,
        callbacks=[look],
        save=lambda state: run.checkpoint({"training": state}),
        save_every=every,
        state=stored["training"],
    )
