"""APO on the scales: what sharpening costs in Pass@k, against GRPO, KL at two strengths, and APO's own halves.

In the exact world one policy that 200 prompts share decides once, among strategies of which each solves some of them.
Pass@k is computed. Every arm samples as many answers an update and has the same optimizer; arms differ in what they do to a
wrong answer, and in what holds them to the reference.
"""

from typing import Annotated, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Run, Select, Study, better, matched, not_worse, study

KS = (1, 8, 64, 256)
REACHED = "2 points of Pass@64 are four of 200 prompts that 64 answers still solve"
SHARPER = "half a point is a ninth of the 4.5 points of Pass@1 that there are to gain"


@study("apo", paper="arXiv:2602.05717", trades="Pass@1 for Pass@k")
def apo(
    updates: Annotated[int, Field(ge=1, le=5000)] = 400,
    evaluations: Annotated[int, Field(ge=1, le=200)] = 80,
    peak: Annotated[float, Field(gt=0.2, lt=0.99)] = 0.85,
) -> Study:
    """Anchored policy optimization against GRPO with and without KL, at equal generations and at equal Pass@1."""
    grid = {"learning_rate": [0.02, 0.05, 0.1]}

    def arm(name: str, kind: Literal["method", "baseline", "control"], **settings) -> Arm:
        return Arm(name, kind=kind, grid=grid, **settings)

    def at_the_end(text: str, arm: str, rival: str, source: str = "card, known in advance") -> Claim:
        test = better("pass_at_64", arm=arm, rival=rival, margin=0.02, reason=REACHED, units=("seed",))
        return Claim(text, source=source, test=test)

    def at_equal_sharpness(text: str, rival: str, primary: bool) -> Claim:
        test = matched(
            "pass_at_1", arm="apo", rival=rival, judge="pass_at_64", margin=0.02, reason=REACHED, units=("seed",)
        )
        return Claim(text, source="question of ours: stopping earlier keeps Pass@k, too", primary=primary, test=test)

    return Study(
        seeds=30,  # from 0; those that were looked at while the world was built are 1000 and above
        budget="generated_tokens",
        scale="One softmax over 40 tokens shared by 200 prompts, Pass@k exact; not a language model.",
        arms=[
            arm("apo", "method", loss="anchored"),
            arm("apo-outside", "method", loss="anchored", clip_mode="outside"),
            arm("grpo", "baseline"),
            arm("grpo-kl-0.02", "baseline", kl_on="all", beta=0.02),
            arm("grpo-kl-0.1", "baseline", kl_on="all", beta=0.1),
            arm("kl-on-wrong", "baseline", kl_on="wrong", beta=0.1),
            arm("push-only", "control", loss="anchored", pull=0.0),
            arm("pull-only", "control", loss="anchored", push=1.0),
            arm("apo-inclusive", "control", loss="anchored", inclusive=True),
            arm("entropy-bonus", "control", entropy=0.01),
        ],
        select=Select("pass_at_1", seeds=3),
        outcomes=[
            *(
                Outcome(f"pass_at_{k}", better="higher", description=f"one of {k} answers is right, mean over prompts")
                for k in KS
            ),
            Outcome("dead_prompts", better="lower", description="share of prompts solved with less than 0.01"),
            Outcome("returned", better="higher", description="of strategies that fell below 1e-3, share above it now"),
            Outcome("coverage", better="higher", description="the policy's mass on the reference's eight likeliest"),
        ],
        claims=[
            at_the_end(
                "At equal generations, APO keeps more of Pass@64 than GRPO.",
                "apo",
                "grpo",
                "arXiv:2602.05717, abstract",
            ),
            Claim(
                "At equal generations, APO's Pass@1 is no worse than GRPO's.",
                source="arXiv:2602.05717, abstract (there: better)",
                test=not_worse("pass_at_1", arm="apo", rival="grpo", margin=0.005, reason=SHARPER, units=("seed",)),
            ),
            at_equal_sharpness("At equal Pass@1, APO keeps more of Pass@64 than GRPO.", "grpo", primary=True),
            at_equal_sharpness(
                "At equal Pass@1, APO keeps more of Pass@64 than GRPO with KL 0.02.", "grpo-kl-0.02", primary=False
            ),
            at_the_end(
                "It is the pull that keeps it: pull alone keeps more than push alone.", "pull-only", "push-only"
            ),
            at_the_end("KL keeps more than APO at a strength of 0.1.", "grpo-kl-0.1", "apo"),
            at_the_end("The sampled token is no anchor: with it among them, less is kept.", "apo", "apo-inclusive"),
            Claim(
                "Better Pass@1 and Pass@K than policy gradients and KL on five mathematics benchmarks.",
                source="arXiv:2602.05717, abstract",
                untested="needs models of 7 B parameters and several GPUs",
            ),
        ],
        run=train,
    )


def train(run: Run) -> None:
    """One arm on the seed's world."""
    from equipoise.reinforcement.worlds_strategies import DEAD, GENERATIONS, Training, World

    updates = run.options["updates"]
    training = Training(World.make(run.seed, peak=run.options["peak"]), seed=run.seed, **run.settings)
    stored = run.resume()
    if stored:
        training.load(stored)

    def look() -> None:
        at = {"step": training.done, "generated_tokens": training.done * GENERATIONS}
        for k in KS:
            run.measure(f"pass_at_{k}", training.pass_at(k).mean().item(), at=at)
        run.measure("dead_prompts", (training.success() < DEAD).sum().item(), of=len(training.success()), at=at)
        run.measure("returned", training.returned(), at=at)
        run.measure("coverage", training.coverage(), at=at)
        run.checkpoint(training.state())

    every = max(updates // run.options["evaluations"], 1)
    if not stored:
        look()
    for _ in range(training.done, updates):
        training.update()
        run.spend(generated_tokens=GENERATIONS, phase="build")
        if training.done % every == 0 or training.done == updates:
            look()
