"""SAGO on the scales: what forgetting costs in retention, against the plain sum, PCGrad, BLUR, RMU and controls.

Per seed a world of fictional people is generated and a model is taught it. Every arm then makes that model forget the same
few people while it sees their neighbours (people who share employers, towns, pets, ...) as the retain set, for the same
number of optimizer steps on the same batches. Accuracies are multiple choice by answer text on questions in wordings that
neither the teaching nor the unlearning used.
"""

from typing import Annotated, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, matched, not_worse, study

# As published for these objectives (the released configurations of arXiv:2604.14808, WMDP), the same for every combination.
RETAIN_WEIGHT = {"ga": 1.0, "npo": 0.1, "simnpo": 0.1, "rmu": 1.0}
ALIGNMENT = {
    "retain_cosine": "cosine_update_retain",
    "forget_cosine": "cosine_update_forget",
    "conflict": "conflict",
}
MARGIN_REASON = "3 points is about the gap to PCGrad that the paper reports on RWKU neighbours (53.5 to 56.9)"


@study("sago", paper="arXiv:2604.14808", trades="forgetting for retention")
def sago(
    model: str = "tiny",
    steps: Annotated[int, Field(ge=10, le=10_000)] = 100,
    objective: Literal["ga", "npo", "simnpo"] = "simnpo",
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8,
    evaluations: Annotated[int, Field(ge=2, le=100)] = 20,
    train_blocks: Annotated[int, Field(ge=1)] | None = None,
) -> Study:
    """Sign-aligned gradients against the sum and projections, at equal steps and at equal forgetting."""
    tiny = model == "tiny"
    grid = {"learning_rate": [3e-4, 1e-3]}
    level = 0.5 if tiny else 0.7  # for choosing settings: as deep as the arms came on tuning seeds

    def arm(name: str, combine: str, kind: Literal["method", "baseline", "control"], objective: str = objective) -> Arm:
        weight = RETAIN_WEIGHT[objective]
        return Arm(name, kind=kind, combine=combine, objective=objective, retain_weight=weight, grid=grid)

    return Study(
        seeds=10 if tiny else 3,
        # Seeds 0 to 9 were seen: there SAGO missed a level of 0.5 in one seed, and with it every claim at that level.
        first_seed=10,
        budget="optimizer_steps",
        scale=(
            "A Llama of about 1 M parameters, taught fictional people on the spot"
            if tiny
            else f"{model}, taught fictional people on the spot"
        )
        + (f" in its last {train_blocks} blocks, the others frozen" if train_blocks else "")
        + "; effects at this scale say nothing of models a thousand times larger.",
        prepare=teach,
        arms=[
            arm("sago", "sago", "method"),
            arm("sago-prefer-retain", "sago-prefer-retain", "method"),
            arm("sum", "sum", "baseline"),
            arm("graddiff", "sum", "baseline", objective="ga"),
            arm("pcgrad", "pcgrad", "baseline"),
            arm("pcgrad-global", "pcgrad-global", "baseline"),
            arm("pcgrad-symmetric", "pcgrad-symmetric", "baseline"),
            arm("blur", "blur", "baseline"),
            arm("rmu", "sum", "baseline", objective="rmu"),
            arm("coin", "coin", "control"),
            arm("retain-only", "retain-only", "control"),
        ],
        select=Select(
            "retain_accuracy", split="validation", seeds=2 if tiny else 1, matched="forget_accuracy", level=level
        ),
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
            Outcome(
                "retain_cosine", better="higher", description="update against retain gradient, mean over all steps"
            ),
            Outcome(
                "forget_cosine", better="higher", description="update against forget gradient, mean over all steps"
            ),
            Outcome("conflict", better="lower", description="share of coordinates in conflict, mean over all steps"),
        ],
        claims=[
            Claim(
                "At equal forgetting, SAGO keeps more of the neighbours than the plain sum.",
                source="arXiv:2604.14808, abstract",
                test=matched(
                    "forget_accuracy",
                    arm="sago",
                    rival="sum",
                    judge="retain_accuracy",
                    level="weakest",
                    margin=0.03,
                    reason=MARGIN_REASON,
                ),
            ),
            Claim(
                "At equal forgetting, SAGO keeps more of the neighbours than PCGrad.",
                source="arXiv:2604.14808, abstract",
                test=matched(
                    "forget_accuracy",
                    arm="sago",
                    rival="pcgrad",
                    judge="retain_accuracy",
                    level="weakest",
                    margin=0.03,
                    reason=MARGIN_REASON,
                ),
            ),
            Claim(
                "SAGO's update is aligned with the retain gradient more closely than PCGrad's.",
                source="arXiv:2604.14808, abstract",
                test=better("retain_cosine", arm="sago", rival="pcgrad", units=("seed",)),
            ),
            Claim(
                "At equal steps, SAGO keeps more of the neighbours than the plain sum.",
                source="card, known in advance",
                test=better("retain_accuracy", arm="sago", rival="sum", margin=0.03, reason=MARGIN_REASON),
            ),
            Claim(
                "At equal steps, SAGO forgets no less than the plain sum.",
                source="card, known in advance",
                test=not_worse("forget_accuracy", arm="sago", rival="sum", margin=0.03, reason=MARGIN_REASON),
            ),
            Claim(
                "It is the signs that matter: a coin that drops as many coordinates keeps less at equal forgetting.",
                source="control of ours",
                primary=False,
                test=matched(
                    "forget_accuracy",
                    arm="sago",
                    rival="coin",
                    judge="retain_accuracy",
                    level="weakest",
                    margin=0.03,
                    reason=MARGIN_REASON,
                ),
            ),
            Claim(
                "Recovers MMLU to 96.0 % of the original on WMDP-Bio, against 94.0 % for PCGrad and 44.6 % for the sum.",
                source="arXiv:2604.14808, abstract",
                untested="needs Zephyr-7B-beta, the gated WMDP corpora and several GPUs",
            ),
        ],
        run=unlearn,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's people to the model: what every arm of this seed starts from."""
    from equipoise.unlearning import fiction

    fiction.teach(preparation.options["model"], preparation)


def unlearn(run: Run) -> None:
    """One arm: unlearn on the seed's batches and measure along the way."""
    from equipoise.training.order import pairs, spend_pairs
    from equipoise.unlearning import fiction
    from equipoise.unlearning.recipe import Recipe
    from equipoise.unlearning.training import prepare, train

    steps, batch_size = run.options["steps"], run.options["batch_size"]
    setting = fiction.open_setting(run.options["model"], run.seed, run.prepared)
    stored = run.resume() or {"training": None, "sums": dict.fromkeys(ALIGNMENT, 0.0)}
    sums = stored["sums"]
    control = {"coin": coin, "retain-only": retain_only}.get(run.settings["combine"])
    begin = stored["training"]["step"] if stored["training"] else 0
    recipe = Recipe(
        objective=run.settings["objective"],
        combine="sum" if control else run.settings["combine"],
        retain_weight=run.settings["retain_weight"],
        learning_rate=run.settings["learning_rate"],
        steps=steps,
        batch_size=batch_size,
        train_blocks=run.options["train_blocks"] if run.settings["objective"] != "rmu" else None,
        seed=run.seed,
    )
    order = pairs(len(setting.forget), len(setting.retain), batch_size, run.seed)
    every = max(steps // run.options["evaluations"], 1)
    if not begin:
        setting.measure(run, 0)

    def look(moment) -> None:
        spend_pairs(run, order(moment.step - 1), setting.forget, setting.retain)
        for name, logged in ALIGNMENT.items():
            sums[name] += moment.metrics[logged]
        if moment.step % every == 0 or moment.step == steps:
            setting.measure(run, moment.step)
            for name in ALIGNMENT:
                run.measure(name, sums[name] / moment.step, at={"step": moment.step})

    train(
        prepare(setting.language_model, recipe),
        recipe,
        setting.forget,
        setting.retain,
        combine=control(run.seed, begin) if control else None,
        callbacks=[look],
        save=lambda state: run.checkpoint({"training": state, "sums": sums}),
        save_every=every,
        state=stored["training"],
    )


def coin(seed: int, begin: int):
    """SAGO with its signs replaced by a coin: as many coordinates get the retain gradient, but any."""
    import itertools

    import torch

    from equipoise.core.streams import torch_stream
    from equipoise.training.gradients import apply
    from equipoise.unlearning.sago import conflicts

    steps = itertools.count(begin)

    def combine(forget, retain, *, forget_weight=1.0, retain_weight=1.0, out=None, observe=None):
        generator = torch_stream(seed, 2, next(steps))
        both = [
            (f.flatten(), r.flatten()) for f, r in zip(forget, retain, strict=True) if f is not None and r is not None
        ]
        total = sum(
            g.numel() for g in (f if f is not None else r for f, r in zip(forget, retain, strict=True)) if g is not None
        )
        share = sum(conflicts(f, r, torch.empty_like(f)).sum().item() for f, r in both) / total

        def rule(f, r, combined, scratch) -> None:
            heads = (torch.rand(f.shape, generator=generator) < share).to(f.dtype)
            torch.lerp(forget_weight * f, retain_weight * r, heads, out=combined)

        return apply(rule, forget, retain, out=out, observe=observe)

    return combine


def retain_only(seed: int, begin: int):
    """No forgetting at all: what training on the retain set does to every outcome by itself."""
    from equipoise.unlearning import gradient_sum

    def combine(forget, retain, *, forget_weight=1.0, retain_weight=1.0, out=None, observe=None):
        return gradient_sum.combine(
            forget, retain, forget_weight=0.0, retain_weight=retain_weight, out=out, observe=observe
        )

    return combine
