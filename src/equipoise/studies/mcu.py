"""MCU on the scales: what relearning a part of what was forgotten brings back of the rest, at one loss of general ability.

Per seed a small model is taught the birth years of invented people. Every arm forgets 400 of them in steps of the same
length and is taken back to its last state within the same budget of general loss. Then the years of 100 are relearned by
several attacks, the strongest of which counts, and the other 300 are asked for. Nothing about these follows from those.

Enough relearning brings back nearly everything of every arm (seed 1000). So it is asked twice: after all of it, as the
abstract has it, and after a tenth, where arms can differ.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, between, study

ABSTRACT = "arXiv:2605.11685, abstract"
OURS = "control of ours"
CARD = "card, known in advance"
POINTS = "5 points are 15 of the 300 people, well above what a seed's questions vary by"
AVERAGE = "a dominant component has to move by half an average component more than a minor one to be called so"
BACK = "a tenth of what moved is the least difference that would matter to who wants it to stay away"
# Every arm moves the same weights in steps of the same length; what differs is where to.
COMMON: dict[str, Any] = {"parameters": "mlp", "update": "fixed-length"}
# All four blocks, since what a model of four knows is in all of them: at 1 and 2 alone 0.86 of V are left (seed 1000).
BREAKING: dict[str, Any] = {"objective": "mlp-breaking", "gradient_filter": "cir", "first_block": 0, "last_block": 3}
ATTACKS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.03, "parameters": "mlp"},
    "sgd-fast": {"optimizer": "sgd", "learning_rate": 0.3, "parameters": "mlp"},
    "sgd-fastest": {"optimizer": "sgd", "learning_rate": 1.0, "parameters": "mlp"},
    "lora": {"optimizer": "adamw", "learning_rate": 3e-3, "parameters": "lora"},
}


@study("mcu", paper="arXiv:2605.11685", trades="robustness to relearning for forgetting")
def mcu(
    steps: Annotated[int, Field(ge=4, le=10_000)] = 80,
    batch_size: Annotated[int, Field(ge=1, le=400)] = 32,
    evaluations: Annotated[int, Field(ge=2, le=100)] = 16,
    loss_budget: Annotated[float, Field(gt=0)] = 0.2,
    retain_learning_rate: Annotated[float, Field(ge=0)] = 0.2,
    epochs: Annotated[int, Field(ge=2, le=100)] = 20,
    dominant: Annotated[int, Field(ge=2, le=64)] = 8,
) -> Study:
    """MLP breaking on minor components against the same on all, on all but the mean, gradient difference, NPO and SAM."""
    grid: dict[str, Any] = {"update_length": [0.2, 0.5]}

    def arm(name: str, kind: Literal["method", "baseline", "control"], **words: Any) -> Arm:
        return Arm(name, kind=kind, grid=grid, **words)

    def breaking(name: str, kind: Literal["method", "baseline", "control"], **words: Any) -> Arm:
        return arm(name, kind, **BREAKING, **words)

    def less(rival: str, arm: str = "mcu", outcome: str = "recovered_early") -> Any:
        return better(outcome, arm=arm, rival=rival, margin=0.05, reason=POINTS)

    def exploratory(text: str, source: str, test: Any) -> Claim:
        return Claim(text, source=source, test=test, primary=False)

    parts: dict[str, Any] = {
        "where_a": {"part": "dominant"},
        "where_b": {"part": "minor"},
        "units": ("seed",),
    }
    return Study(
        seeds=5,  # from 0; seed 1000 was looked at while the world was built
        budget="optimizer_steps",
        scale="A Llama of about 1 M parameters, taught invented birth years on the spot; effects at this scale say nothing "
        "of models a thousand times larger, nor of WMDP.",
        prepare=teach,
        arms=[
            breaking("mcu", "method", project="mcu", components=8),
            breaking("mcu-32", "method", project="mcu", components=32),
            breaking("mlp-breaking", "baseline"),
            arm("graddiff", "baseline", objective="ga"),
            arm("npo", "baseline", objective="npo"),
            arm("npo-sam", "baseline", objective="npo", robust="sam", rho=0.1),
            breaking("mean-only", "control", project="mcu", components=1),
            breaking("random", "control", project="random", components=8),
            breaking("random-without-mean", "control", project="random", components=8, mean_mode="none"),
        ],
        select=Select("recovered_early", split="validation", seeds=1),
        outcomes=[
            Outcome(
                "forget_accuracy", better="lower", chance=0.25, description="probability of the right year, held out"
            ),
            Outcome(
                "kept_accuracy", better="higher", chance=0.25, description="of people to keep who are not rehearsed"
            ),
            Outcome(
                "general_loss", better="lower", unit="nats/token", description="on general sentences, never taught"
            ),
            Outcome(
                "capped_accuracy",
                better="lower",
                chance=0.25,
                description="held out, at the last state within the budget",
            ),
            Outcome(
                "recovered_accuracy", better="lower", chance=0.25, description="held out, after the strongest attack"
            ),
            Outcome(
                "recovered_early",
                better="lower",
                chance=0.25,
                description="held out, after a tenth of the attack that is the strongest by then",
            ),
            Outcome("regained", better="lower", description="recovered less capped, by question"),
            Outcome("change_ratio", better="higher", description="of a component, over the average one"),
            Outcome(
                "recovery_ratio", better="higher", description="of what moved along components, the share that is back"
            ),
        ],
        claims=[
            Claim(
                "At one loss of general ability, an attack brings back less after MCU than after MLP breaking.",
                source=ABSTRACT,
                test=less("mlp-breaking", outcome="recovered_accuracy"),
            ),
            Claim(
                "And less than after unlearning with SAM.",
                source=ABSTRACT,
                test=less("npo-sam", outcome="recovered_accuracy"),
            ),
            Claim(
                "Unlearning without MCU moves mainly the dominant components of representations.",
                source=ABSTRACT,
                test=between("change_ratio", arm="mlp-breaking", margin=0.5, reason=AVERAGE, **parts),
            ),
            exploratory(
                "A tenth of the attack brings back less after MCU than after MLP breaking.", OURS, less("mlp-breaking")
            ),
            exploratory("And less than after unlearning with SAM.", OURS, less("npo-sam")),
            exploratory("And less than after NPO alone.", OURS, less("npo")),
            exploratory(
                "Relearning restores mainly the dominant components.",
                ABSTRACT,
                between("recovery_ratio", arm="mlp-breaking", margin=0.1, reason=BACK, **parts),
            ),
            exploratory(
                "Unlearning by NPO moves mainly the dominant components, too.",
                ABSTRACT,
                between("change_ratio", arm="npo", margin=0.5, reason=AVERAGE, **parts),
            ),
            exploratory("It is not the mean alone: without it only, more comes back.", OURS, less("mean-only")),
            exploratory(
                "Main directions matter: with random ones beside the mean more comes back.",
                OURS,
                less("random"),
            ),
            exploratory(
                "The mean does it: taking it out alone leaves less to bring back than plain MLP breaking.",
                CARD,
                less("mlp-breaking", arm="mean-only"),
            ),
            exploratory(
                "32 components leave less to bring back than 8.", "a setting of the paper", less("mcu", arm="mcu-32")
            ),
            Claim(
                "More robust than MLP breaking, RMU, NPO and SAM on WMDP-Bio, WMDP-Cyber and Years.",
                source=ABSTRACT,
                untested="needs Llama-3.1-8B and corpora that are not released; the paper's tables are not public here",
            ),
        ],
        run=unlearn,
    )


def teach(preparation: Preparation) -> None:
    """The model that knows everybody."""
    from equipoise.unlearning import mcu_world

    mcu_world.teach(preparation)


def unlearn(run: Run) -> None:
    """One arm: forget as far as the budget allows, then be attacked."""
    import copy

    from equipoise.training.order import pairs, spend_pairs
    from equipoise.unlearning import mcu_world
    from equipoise.unlearning.recipe import Recipe
    from equipoise.unlearning.training import prepare, train

    steps, batch_size = run.options["steps"], run.options["batch_size"]
    setting = mcu_world.open_setting(run.seed, run.prepared)
    recipe = Recipe(
        steps=steps,
        batch_size=batch_size,
        retain_learning_rate=run.options["retain_learning_rate"],
        seed=run.seed,
        **COMMON,
        **run.settings,
    ).check()
    before = copy.deepcopy(setting.language_model.model)
    model = prepare(setting.language_model, recipe).model
    stored = run.resume() or {"training": None, "capped": None, "step": 0, "loss": None}
    capped, reached, first_loss = stored["capped"], stored["step"], stored["loss"]
    every = max(steps // run.options["evaluations"], 1)
    order = pairs(len(setting.forget), len(setting.retain), batch_size, run.seed)

    def keep(step: int) -> None:
        nonlocal capped, reached
        reached = step
        capped = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    if stored["training"] is None:
        first_loss = setting.measure(run, 0)
        keep(0)

    def look(moment) -> bool:
        spend_pairs(run, order(moment.step - 1), setting.forget, setting.retain)
        if moment.step % every and moment.step != steps:
            return False
        within = setting.measure(run, moment.step) <= first_loss + run.options["loss_budget"]  # nan is not
        if within:
            keep(moment.step)
        return not within

    train(
        setting.language_model,
        recipe,
        setting.forget,
        setting.retain,
        callbacks=[look],
        save=lambda state: run.checkpoint({"training": state, "capped": capped, "step": reached, "loss": first_loss}),
        save_every=every,
        state=stored["training"],
    )
    model.load_state_dict(capped, strict=False)
    attack(run, setting, before, reached)


def attack(run: Run, setting: Any, before: Any, step: int) -> None:
    """Relearn T in several ways and measure V after the strongest; then what moved and what came back."""
    from dataclasses import replace

    from equipoise.unlearning import audit_spectra, mcu_world
    from equipoise.unlearning.relearning import Relearning, relearn

    language_model, parts = setting.language_model, tuple(mcu_world.ASKED)
    asked = {part: setting.asked["held-out", part] for part in parts}
    every = max(run.options["epochs"] // 10, 1)
    capped = {part: mcu_world.right_probability(language_model, asked[part]) for part in parts}
    found: dict[str, list[Any]] = {part: [] for part in parts}
    early: dict[str, list[Any]] = {part: [] for part in parts}
    relearned = []
    for words in ATTACKS.values():
        path: dict[str, list[Any]] = {part: [] for part in parts}

        def ask(model: Any, epoch: int, path: dict[str, list[Any]] = path) -> None:
            if epoch % every == 0:
                for part in parts:
                    path[part].append(mcu_world.right_probability(model, asked[part]))

        settings = Relearning(epochs=run.options["epochs"], seed=run.seed, **words)
        relearned.append(relearn(language_model, setting.relearned, settings, evaluate=ask))
        run.spend(attack_steps=relearned[-1].steps)
        for part in parts:
            looked = path[part] or [capped[part]]  # an attack that diverged at once leaves the state before it
            found[part].append(mcu_world.recovered(looked))
            early[part].append(looked[0])
    strongest = {part: _strongest(found[part]) for part in parts}
    for part in parts:
        scores = found[part][strongest[part]]
        mcu_world.record(run, "capped_accuracy", asked[part], capped[part], step, part)
        mcu_world.record(run, "recovered_accuracy", asked[part], scores, step, part)
        mcu_world.record(run, "recovered_early", asked[part], early[part][_strongest(early[part])], step, part)
        mcu_world.record(run, "regained", asked[part], scores - capped[part], step, part)
    models = (before, language_model.model, relearned[strongest["test"]].language_model.model)
    known, forgotten, back = (
        audit_spectra.states(
            replace(language_model, model=model), asked["test"], BREAKING["last_block"], max_length=128
        )
        for model in models
    )
    vectors = mcu_world.every_component(known)
    for name, values in mcu_world.by_part(known, forgotten, back, vectors, run.options["dominant"]).items():
        run.measure("change_ratio", values["change"], at={"step": step}, where={"part": name})
        run.measure("recovery_ratio", values["recovery"], at={"step": step}, where={"part": name})


def _strongest(scores: Sequence[Any]) -> int:
    return max(range(len(scores)), key=lambda attack: scores[attack].mean().item())
