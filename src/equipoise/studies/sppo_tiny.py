"""SPPO's claims again, on a tiny decoder that learns arithmetic: against groups of samples, token critics and controls.

Per seed a model is taught chains of operators until it solves the short ones mostly and the long ones seldom. Every arm goes
on from there with as many responses a step, the same clipped loss and the same problems, and differs in its baseline alone.
Accuracy is of greedy answers; solve rates, and how well a critic knows them, are computed.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, matched, not_worse, study

MARGIN = 0.02
REASON = "2 points are half of what SPPO is ahead of token-level PPO in the paper's averages (48.06 against 44.06)"
TABLE = "arXiv:2604.08865, table of results as public reading notes give it"
RESPONSES = 64  # a step
# Chosen on seed 1000, which no result rests on.
FIXED_RATE, CRITIC_RATE = 1e-4, 1e-3


@study("sppo-tiny", paper="arXiv:2604.08865", trades="a critic for samples", system="sppo")
def sppo_tiny(
    steps: Annotated[int, Field(ge=1, le=5000)] = 60,
    evaluations: Annotated[int, Field(ge=1, le=100)] = 4,
    train_problems: Annotated[int, Field(ge=1, le=100_000)] = 1000,
    test_problems: Annotated[int, Field(ge=1, le=5000)] = 500,
) -> Study:
    """SPPO against GRPO, RLOO, token-level PPO and baselines without a critic, on a decoder that learns arithmetic."""
    grid = {"learning_rate": [1e-4, 2e-4]}

    def arm(name: str, kind: Literal["method", "baseline", "control"], method: str, **settings: Any) -> Arm:
        return Arm(name, kind=kind, method=method, grid=grid, **settings)

    def ahead(text: str, rival: str, source: str, *, arm: str = "sppo", primary: bool = True, **margin: Any) -> Claim:
        return Claim(
            text, source=source, primary=primary, test=better("accuracy_so_far", arm=arm, rival=rival, **margin)
        )

    return Study(
        seeds=5,  # from 0; seed 1000 was looked at while rates and steps were chosen
        budget="generated_tokens",
        dial="generated_tokens",
        scale="A Llama of about 0.7 M parameters, taught chains of one-digit operators on the spot.",
        prepare=teach,
        arms=[
            arm("sppo", "method", "sppo", critic_share=1.0),
            arm("sppo-quarter", "method", "sppo", critic_share=0.25),
            arm("grpo", "baseline", "grpo", num_generations=8),
            arm("rloo", "baseline", "rloo", num_generations=8),
            arm("ppo-gae", "baseline", "ppo"),
            arm("ppo-bce", "baseline", "ppo-bce"),
            arm("no-baseline", "control", "reinforce"),
            Arm("batch-mean", kind="control", advantage="batch-mean", grid=grid),
            Arm(
                "running-mean",
                kind="control",
                advantage="running-mean",
                learning_rate=FIXED_RATE,
                fixed="no claim is made about it",
            ),
        ],
        select=Select("accuracy_so_far", seeds=1),
        outcomes=[
            Outcome("accuracy_so_far", better="higher", description="greedy accuracy, mean over the training so far"),
            Outcome("greedy_accuracy", better="higher", description="problems whose likeliest solution is right"),
            Outcome("solve_rate", better="higher", description="computed probability of a right solution"),
            Outcome(
                "critic_spearman", better="higher", chance=0.0, description="prediction against computed solve rate"
            ),
            Outcome("critic_brier", better="lower", description="expected over solutions, mean over problems"),
            Outcome("zero_advantage_share", better="lower", description="of responses, since the last evaluation"),
            Outcome("critic_bytes", better="lower", unit="bytes", description="weights, gradients and AdamW's moments"),
        ],
        claims=[
            ahead(
                "At equal generated tokens, SPPO with one sample a prompt solves more than GRPO with eight.",
                "grpo",
                TABLE,
            ),
            ahead(
                "At equal generated tokens, SPPO solves more than token-level PPO with GAE.",
                "ppo-gae",
                TABLE,
                margin=MARGIN,
                reason=REASON,
            ),
            Claim(
                "A critic of a quarter of the size is no worse.",
                source=TABLE,
                test=not_worse("accuracy_so_far", arm="sppo-quarter", rival="sppo", margin=MARGIN, reason=REASON),
            ),
            Claim(
                "SPPO comes to a level with fewer generated tokens than GRPO.",
                source="arXiv:2604.08865, 5.9 times faster as public reading notes give it (there in time)",
                primary=False,
                test=matched(
                    "solve_rate",
                    arm="sppo",
                    rival="grpo",
                    judge="generated_tokens",
                    by=1.25,
                    reason="a fifth less generation is worth the second model that a critic is",
                ),
            ),
            ahead(
                "It is the sequence-level advantage, not the loss of the critic: token-level PPO with BCE solves less.",
                "ppo-bce",
                "arXiv:2604.08865, ablation as public reading notes give it (collapse near step 500)",
                primary=False,
                margin=MARGIN,
                reason=REASON,
            ),
            ahead(
                "The critic is worth its keep: SPPO solves more than the batch mean as baseline.",
                "batch-mean",
                "control of ours",
                primary=False,
            ),
            ahead(
                "Reward alone, without any baseline, solves more than SPPO (a verifier under which only success counts).",
                "sppo",
                "card, known in advance",
                arm="no-baseline",
            ),
        ],
        run=train,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's model: what every arm of this seed starts from."""
    from equipoise.language import warm_start

    warm_start.teach("levels", preparation)


def train(run: Run) -> None:
    """One arm from the seed's model on."""
    import torch

    from equipoise.reinforcement.recipe import recipe
    from equipoise.reinforcement.tiny_world import TinyWorld, critic_bytes, shallow_critic
    from equipoise.reinforcement.worlds import expected_brier, spearman

    options, settings = run.options, dict(run.settings)
    tiny = TinyWorld.open(
        "levels", run.seed, run.prepared, train=options["train_problems"], test=options["test_problems"]
    )
    share, method = settings.pop("critic_share", 1.0), settings.pop("method", None)
    samples = settings.setdefault("num_generations", 1)
    made = recipe(
        method,
        **settings,
        steps=options["steps"],
        prompts_per_step=RESPONSES // samples,
        batch_size=RESPONSES,
        max_new_tokens=tiny.made.world.max_new_tokens,
        aggregate="token-mean",
        critic_learning_rate=CRITIC_RATE,
        seed=run.seed,
    )
    critic = shallow_critic(tiny.language_model, share, seed=run.seed) if made.critic != "none" else None

    def look(now) -> None:
        right = [tiny.solved(*each) for each in zip(tiny.test, tiny.write().texts, strict=True)]
        run.items("greedy_accuracy", tiny.names, right, at=now.at)
        run.items("accuracy_so_far", tiny.names, now.so_far("right", right), at=now.at)
        rates = tiny.solve_rates()
        run.items("solve_rate", tiny.names, rates, at=now.at)
        if now.done:
            run.measure("zero_advantage_share", now.mean("zero_advantage"), at=now.at)
        if critic is not None and made.critic == "prompt":
            predicted, known = torch.from_numpy(tiny.predictions(critic)), torch.from_numpy(rates)
            run.measure("critic_spearman", spearman(predicted, known), at=now.at)
            run.measure("critic_brier", expected_brier(predicted, known), at=now.at)
        if now.last:
            run.measure("critic_bytes", critic_bytes(critic), at=now.at)

    tiny.reinforce(run, made, look, evaluations=options["evaluations"], critic=critic)
