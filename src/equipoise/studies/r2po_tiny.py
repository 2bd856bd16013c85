"""R2PO's claims again, on a tiny decoder that learns arithmetic and answers in the wrong form by habit.

Per seed a model is taught short chains whose answers it ends in the habitual form mostly, greedily always; the strict one
counts. Rewards are those of the released code. A step costs as many responses whether it trains the policy or the head, so
that GRPO is given as many as both stages of R2PO; accuracy and form are of greedy answers of the plain model.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, study

KNOWN = "card, known in advance"
GAIN = "arXiv:2601.11960, abstract"
GROUP, RESPONSES = 8, 64  # a prompt, a step
HEAD_RATE = 3e-4  # chosen on seed 1000, which no result rests on


@study("r2po-tiny", paper="arXiv:2601.11960", trades="stable answers for diverse rollouts", system="r2po")
def r2po_tiny(
    rounds: Annotated[int, Field(ge=1, le=100)] = 3,
    head_steps: Annotated[int, Field(ge=1, le=1000)] = 6,
    policy_steps: Annotated[int, Field(ge=1, le=1000)] = 12,
    evaluations: Annotated[int, Field(ge=1, le=100)] = 6,
    train_problems: Annotated[int, Field(ge=1, le=100_000)] = 1000,
    test_problems: Annotated[int, Field(ge=1, le=5000)] = 500,
) -> Study:
    """A residual rollout head against GRPO, temperatures, a random head and staging, on a decoder that learns arithmetic."""
    grid = {"learning_rate": [1e-4, 2e-4]}

    def arm(name: str, kind: Literal["method", "baseline", "control"], **settings: Any) -> Arm:
        return Arm(name, kind=kind, grid=grid, **settings)

    def more(
        text: str, arm: str, rival: str, source: str, outcome: str = "accuracy_so_far", primary: bool = True
    ) -> Claim:
        return Claim(text, source=source, primary=primary, test=better(outcome, arm=arm, rival=rival))

    return Study(
        seeds=8,  # from 0; seed 1000 was looked at while rates and steps were chosen
        budget="generated_tokens",
        dial="generated_tokens",
        scale="A Llama of about 0.7 M parameters, taught short chains of one-digit operators on the spot.",
        prepare=teach,
        arms=[
            arm("r2po-task", "method", head="trained", head_advantage="task", head_learning_rate=HEAD_RATE),
            arm("r2po-rarity", "method", head="trained", head_advantage="rarity", head_learning_rate=HEAD_RATE),
            Arm("grpo", kind="baseline", grid=grid),
            arm("grpo-t-1.3", "control", temperature=1.3),
            arm("grpo-t-1.8", "control", temperature=1.8),
            arm("random-head", "control", head="random"),
            arm("staging-alone", "control", staged=True),
        ],
        select=Select("accuracy_so_far", seeds=1),
        outcomes=[
            Outcome("accuracy_so_far", better="higher", description="greedy accuracy, mean over the training so far"),
            Outcome("format_error_so_far", better="lower", description="greedy, mean over the training so far"),
            Outcome("greedy_accuracy", better="higher", description="likeliest solution right, in the strict form"),
            Outcome("solve_rate", better="higher", description="computed probability of a right, strict solution"),
            Outcome("greedy_format_error", better="lower", description="likeliest solution not in the strict form"),
            Outcome(
                "length_gap", better="lower", unit="tokens", description="wrong minus right greedy answers of a level"
            ),
            Outcome(
                "zero_advantage_share",
                better="lower",
                description="of responses of the policy's steps, since the last evaluation",
            ),
            Outcome("distinct_rewards", better="higher", description="in a group of eight, since the last evaluation"),
        ],
        claims=[
            more(
                "At equal generated tokens, R2PO (task reward) solves more along its training than GRPO.",
                "r2po-task",
                "grpo",
                GAIN,
            ),
            more(
                "At equal generated tokens, R2PO (rarity) solves more along its training than GRPO.",
                "r2po-rarity",
                "grpo",
                GAIN,
            ),
            more(
                "R2PO (task reward) makes fewer errors of form than GRPO.",
                "r2po-task",
                "grpo",
                "arXiv:2601.11960, as public reading notes give it",
                outcome="format_error_so_far",
            ),
            more(
                "It is the head, not the staging: R2PO (task reward) solves more than stages without a head.",
                "r2po-task",
                "staging-alone",
                "arXiv:2601.11960, ablation as public reading notes give it (83.55 against 82.18)",
                primary=False,
            ),
            more(
                "A head trained for rarity starves fewer groups of their advantage than GRPO.",
                "r2po-rarity",
                "grpo",
                KNOWN,
                outcome="zero_advantage_share",
            ),
            more("A temperature of 1.8 does as much: it solves more than GRPO.", "grpo-t-1.8", "grpo", KNOWN),
            more("A random head is no head: it solves less than GRPO.", "grpo", "random-head", KNOWN),
        ],
        run=train,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's model: what every arm of this seed starts from."""
    from equipoise.language import warm_start

    warm_start.teach("format", preparation)


def train(run: Run) -> None:
    """One arm from the seed's model on."""
    import numpy as np

    from equipoise.data.arithmetic import check_steps
    from equipoise.reinforcement.recipe import recipe
    from equipoise.reinforcement.tiny_world import TinyWorld, freezing_output

    options, settings = run.options, dict(run.settings)
    tiny = TinyWorld.open(
        "format", run.seed, run.prepared, train=options["train_problems"], test=options["test_problems"]
    )
    staged = settings.pop("staged", False)
    if settings.get("head") == "trained":
        settings |= {name: options[name] for name in ("head_steps", "policy_steps")}
    rhythm = options["head_steps"] + options["policy_steps"]
    made = recipe(
        "r2po",
        **{"head": "none", **settings},
        steps=options["rounds"] * rhythm,
        prompts_per_step=RESPONSES // GROUP,
        num_generations=GROUP,
        batch_size=RESPONSES,
        max_new_tokens=tiny.made.world.max_new_tokens,
        seed=run.seed,
    )

    def reward(problem, text) -> float:
        """As the released code pays: 1 for a right answer, else -1; 1.25 for the right form, else -1."""
        read = check_steps(problem, text)
        right = read.right and tiny.made.world.is_sound(problem, text)
        return (1.0 if right else -1.0) + (1.25 if read.form == "strict" else -1.0)

    def look(now) -> None:
        written = tiny.write()
        answered = list(zip(tiny.test, written.texts, strict=True))
        right = np.array([tiny.solved(*each) for each in answered])
        malformed = [check_steps(*each).form != "strict" for each in answered]
        run.items("greedy_accuracy", tiny.names, right, at=now.at)
        run.items("accuracy_so_far", tiny.names, now.so_far("right", right), at=now.at)
        run.items("greedy_format_error", tiny.names, malformed, at=now.at)
        run.items("format_error_so_far", tiny.names, now.so_far("malformed", malformed), at=now.at)
        run.items("solve_rate", tiny.names, tiny.solve_rates(), at=now.at)
        lengths, levels = written.lengths.numpy(), np.array([problem.level for problem in tiny.test])
        both = [
            (lengths[(levels == level) & (right == 0)], lengths[(levels == level) & (right == 1)])
            for level in set(levels)
        ]
        gaps = [wrong.mean() - solved.mean() for wrong, solved in both if wrong.size and solved.size]
        run.measure("length_gap", float(np.mean(gaps)) if gaps else math.nan, at=now.at)
        if now.logged:
            run.measure("zero_advantage_share", now.mean("zero_advantage"), at=now.at)
            run.measure("distinct_rewards", now.mean("distinct_rewards"), at=now.at)

    frozen = freezing_output(tiny.language_model, lambda step: step % rhythm >= options["head_steps"]) if staged else {}
    tiny.reinforce(run, made, look, evaluations=options["evaluations"], reward=reward, **frozen)
