"""ReGLU on the scales: what an adapter's start and its penalty are worth, against other starts with the same loss.

Per seed a world of fictional people is generated and a small model is taught it (`unlearning.fiction`, as in the study
`sago`). Every arm then trains an adapter of the same rank for the same steps on the same batches, to forget a few people and
keep their neighbours, by the same two losses. What differs is where the adapter begins and what it is kept out of.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, matched, study

ABSTRACT = "arXiv:2604.17396, abstract"
OURS = "control of ours"
MARGIN_REASON = "3 points of the neighbours' questions, as in the study of SAGO on the same world"


@study("reglu", paper="arXiv:2604.17396", trades="forgetting for retention, through an adapter")
def reglu(
    steps: Annotated[int, Field(ge=10, le=10_000)] = 100,
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8,
    evaluations: Annotated[int, Field(ge=2, le=100)] = 20,
    lora_rank: Annotated[int, Field(ge=1, le=64)] = 8,
) -> Study:
    """ReGLU's start and penalty, each alone and both, against FILA, VILA and a plain adapter, at equal forgetting."""
    # A decade: at 1e-3 a plain adapter forgets nothing in 100 steps, at 3e-3 VILA leaves nothing (seed 1000).
    grid: dict[str, Any] = {"learning_rate": [1e-3, 3e-3, 1e-2]}

    def settings(**words: Any) -> dict[str, Any]:
        return {"objective": "ihl", "start": "default", "orthogonality": 0.0, "forget_weight": 1.0} | words

    def arm(name: str, kind: Literal["method", "baseline", "control"], **words: Any) -> Arm:
        return Arm(name, kind=kind, grid=grid, **settings(**words))

    def keeps_more(rival: str) -> Any:
        return matched(
            "forget_accuracy",
            arm="reglu",
            rival=rival,
            judge="retain_accuracy",
            level="weakest",
            margin=0.03,
            reason=MARGIN_REASON,
        )

    return Study(
        seeds=8,
        first_seed=100,
        budget="optimizer_steps",
        scale="A Llama of about 1 M parameters, taught fictional people on the spot; effects at this scale say nothing of "
        "models a thousand times larger, nor of TOFU.",
        prepare=teach,
        arms=[
            arm("reglu", "method", start="reglu", orthogonality=0.5),
            arm("ihl", "baseline"),
            arm("fila", "baseline", start="fila"),
            arm("vila", "baseline", start="vila"),
            arm("graddiff", "baseline", objective="ga"),
            arm("start-only", "control", start="reglu"),
            arm("penalty-only", "control", orthogonality=0.5),
            Arm(
                "retain-only",
                kind="control",
                fixed="it forgets nothing by which a rate could be chosen",
                learning_rate=3e-3,
                **settings(forget_weight=0.0),
            ),
        ],
        select=Select("retain_accuracy", split="validation", seeds=1, matched="forget_accuracy", level=0.6),
        outcomes=[
            Outcome("forget_accuracy", better="lower", chance=0.25, description="questions on the people to forget"),
            Outcome("retain_accuracy", better="higher", chance=0.25, description="questions on their neighbours"),
            Outcome(
                "general_accuracy", better="higher", chance=0.25, description="questions on people who share nothing"
            ),
            Outcome(
                "forget_log_probability", better="lower", unit="nats/token", description="of the answers to forget"
            ),
            Outcome("general_loss", better="lower", unit="nats/token", description="on general sentences"),
        ],
        claims=[
            Claim(
                "At equal forgetting, ReGLU keeps more of the neighbours than a plain adapter with the same loss.",
                source=ABSTRACT,
                test=keeps_more("ihl"),
            ),
            Claim(
                "At equal forgetting, ReGLU keeps more of the neighbours than FILA.",
                source=ABSTRACT,
                test=keeps_more("fila"),
            ),
            Claim(
                "At equal forgetting, ReGLU keeps more of the neighbours than VILA.",
                source=ABSTRACT,
                test=keeps_more("vila"),
            ),
            Claim(
                "Both parts together keep more than the start alone.",
                source=OURS,
                primary=False,
                test=keeps_more("start-only"),
            ),
            Claim(
                "Both parts together keep more than the penalty alone.",
                source=OURS,
                primary=False,
                test=keeps_more("penalty-only"),
            ),
            Claim(
                "Better forget quality than IHL, FILA and VILA on TOFU with Phi-1.5 and Llama-2-7B, and on WMDP.",
                source=ABSTRACT,
                untested="needs Phi-1.5, Llama-2-7B and Zephyr-7B, and the gated WMDP corpora",
            ),
        ],
        run=unlearn,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's people to the model: what every arm of this seed starts from."""
    from equipoise.unlearning import fiction

    fiction.teach("tiny", preparation)


def unlearn(run: Run) -> None:
    """One arm: train the adapter on the seed's batches and measure along the way."""
    from equipoise.training.order import pairs, spend_pairs
    from equipoise.unlearning import fiction
    from equipoise.unlearning.recipe import Recipe
    from equipoise.unlearning.training import prepare, train

    steps, batch_size = run.options["steps"], run.options["batch_size"]
    setting = fiction.open_setting("tiny", run.seed, run.prepared)
    stored = run.resume() or {"training": None}
    recipe = Recipe(
        parameters="lora",
        lora_rank=run.options["lora_rank"],
        combine="sum",
        steps=steps,
        batch_size=batch_size,
        seed=run.seed,
        **run.settings,
    ).check()
    order = pairs(len(setting.forget), len(setting.retain), batch_size, run.seed)
    every = max(steps // run.options["evaluations"], 1)
    if stored["training"] is None:
        setting.measure(run, 0)

    def look(moment) -> None:
        spend_pairs(run, order(moment.step - 1), setting.forget, setting.retain)
        if moment.step % every == 0 or moment.step == steps:
            setting.measure(run, moment.step)

    train(
        prepare(setting.language_model, recipe),
        recipe,
        setting.forget,
        setting.retain,
        callbacks=[look],
        save=lambda state: run.checkpoint({"training": state}),
        save_every=every,
        state=stored["training"],
    )
