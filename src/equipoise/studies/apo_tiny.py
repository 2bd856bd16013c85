"""APO's claims again, on a tiny decoder that learns arithmetic with several routes to an answer, one of which dominates.

Per seed a model is taught to find operators that lead to a number, mostly by trying additions alone. Every arm goes on from
there with as many responses a step and the same groups, and differs in what it does to a wrong answer, and in what holds it
to the start. Pass@k is estimated from samples; how likely each route is, and with it Pass@1, is computed.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, matched, not_worse, study

KS = (1, 2, 4, 8, 16, 32)
SAMPLES = KS[-1]
DEAD, REACH = 0.01, 1e-3  # of a problem's solutions together, of one of them
REACHED = "2 points of Pass@32 are two or three of 128 problems that 32 answers still solve"
SHARPER = "2 points of Pass@1 are a sixth of what the start solves at one try (0.12 on seed 1000)"
GROUP, RESPONSES = 8, 64  # a prompt, a step


@study("apo-tiny", paper="arXiv:2602.05717", trades="Pass@1 for Pass@k", system="apo")
def apo_tiny(
    steps: Annotated[int, Field(ge=1, le=5000)] = 60,
    evaluations: Annotated[int, Field(ge=1, le=100)] = 4,
    train_problems: Annotated[int, Field(ge=1, le=100_000)] = 1000,
    test_problems: Annotated[int, Field(ge=1, le=5000)] = 128,
) -> Study:
    """Anchored policy optimization against GRPO with and without KL, on a decoder that learns arithmetic."""
    grid = {"learning_rate": [1e-4, 2e-4]}

    def arm(name: str, kind: Literal["method", "baseline", "control"], method: str = "grpo", **settings: Any) -> Arm:
        return Arm(name, kind=kind, method=method, grid=grid, **settings)

    def at_the_end(text: str, arm: str, rival: str, source: str = "card, known in advance") -> Claim:
        test = better("pass_at_32", arm=arm, rival=rival, margin=0.02, reason=REACHED)
        return Claim(text, source=source, test=test)

    def at_equal_sharpness(text: str, rival: str, primary: bool) -> Claim:
        test = matched("solve_rate", arm="apo", rival=rival, judge="pass_at_32", margin=0.02, reason=REACHED)
        return Claim(text, source="question of ours: stopping earlier keeps Pass@k, too", primary=primary, test=test)

    return Study(
        seeds=5,  # from 0; seed 1000 was looked at while rates and steps were chosen
        budget="generated_tokens",
        dial="generated_tokens",
        scale="A Llama of about 0.7 M parameters, taught to find one-digit operators on the spot.",
        prepare=teach,
        arms=[
            arm("apo", "method", "apo"),
            arm("grpo", "baseline"),
            arm("grpo-kl-0.02", "baseline", kl_beta=0.02),
            arm("grpo-kl-0.1", "baseline", kl_beta=0.1),
            arm("kl-on-wrong", "baseline", kl_beta=0.1, kl_on="wrong"),
            arm("push-only", "control", "apo", pull=0.0),
            arm("pull-only", "control", "apo", push=1.0),
        ],
        select=Select("solve_rate", seeds=1),
        outcomes=[
            *(
                Outcome(f"pass_at_{k}", better="higher", description=f"one of {k} answers is right, estimated from 32")
                for k in KS
            ),
            Outcome("solve_rate", better="higher", description="computed probability of a right solution: Pass@1"),
            Outcome("dead_problems", better="lower", description="share of problems solved with less than 0.01"),
            Outcome("branches", better="higher", description="share of right solutions likelier than 0.001"),
            Outcome("returned", better="higher", description="of right solutions that were below, share above it now"),
            Outcome(
                "coverage", better="higher", description="mass on the start's eight likeliest tokens, along samples"
            ),
        ],
        claims=[
            at_the_end(
                "At equal generations, APO keeps more of Pass@32 than GRPO.",
                "apo",
                "grpo",
                "arXiv:2602.05717, abstract",
            ),
            Claim(
                "At equal generations, APO's Pass@1 is no worse than GRPO's.",
                source="arXiv:2602.05717, abstract (there: better)",
                test=not_worse("solve_rate", arm="apo", rival="grpo", margin=0.02, reason=SHARPER),
            ),
            at_equal_sharpness("At equal Pass@1, APO keeps more of Pass@32 than GRPO.", "grpo", primary=True),
            at_equal_sharpness(
                "At equal Pass@1, APO keeps more of Pass@32 than GRPO with KL 0.02.", "grpo-kl-0.02", primary=False
            ),
            at_the_end(
                "It is the pull that keeps it: pull alone keeps more than push alone.", "pull-only", "push-only"
            ),
            at_the_end("KL keeps more than APO at a strength of 0.1.", "grpo-kl-0.1", "apo"),
        ],
        run=train,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's model: what every arm of this seed starts from."""
    from equipoise.language import warm_start

    warm_start.teach("routes", preparation)


def train(run: Run) -> None:
    """One arm from the seed's model on."""
    import copy

    import numpy as np

    from equipoise.core.scores import pass_at_k
    from equipoise.reinforcement.recipe import recipe
    from equipoise.reinforcement.tiny_world import TinyWorld

    options = run.options
    tiny = TinyWorld.open(
        "routes", run.seed, run.prepared, train=options["train_problems"], test=options["test_problems"]
    )
    start = copy.deepcopy(tiny.language_model.model)
    made = recipe(
        **run.settings,
        steps=options["steps"],
        prompts_per_step=RESPONSES // GROUP,
        num_generations=GROUP,
        batch_size=RESPONSES // 2,
        max_new_tokens=tiny.made.world.max_new_tokens,
        aggregate="token-mean",
        seed=run.seed,
    )

    def look(now) -> None:
        written = tiny.write(samples=SAMPLES, temperature=1.0)
        texts = np.array(written.texts, dtype=object).reshape(-1, SAMPLES)
        right = [sum(tiny.solved(problem, text) for text in its) for problem, its in zip(tiny.test, texts, strict=True)]
        for k in KS:
            run.items(f"pass_at_{k}", tiny.names, pass_at_k(right, SAMPLES, k), at=now.at)
        branches = tiny.solution_probabilities()
        rates = np.array([each.sum() for each in branches])
        run.items("solve_rate", tiny.names, rates, at=now.at)
        run.items("dead_problems", tiny.names, rates < DEAD, at=now.at)
        within = np.concatenate(branches) >= REACH
        run.measure("branches", within.sum(), of=len(within), at=now.at)
        if "below" in now.notes:
            below = now.notes["below"]
            run.measure("returned", (within & below).sum(), of=below.sum(), at=now.at)
        now.notes["below"] = now.notes.get("below", False) | ~within
        run.measure("coverage", tiny.coverage(start, written, anchors=made.anchors), at=now.at)

    tiny.reinforce(run, made, look, evaluations=options["evaluations"])
