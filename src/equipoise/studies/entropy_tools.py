"""Entropy as a reward for tool calls, on a tiny decoder that looks keys up: does it save calls, and is it needed for that?

Per seed a model is taught to look up the keys of a chain, with 2 to 4 useless calls in every episode, until it solves half
of them. Every arm goes on from there with the same episodes, the same loss and as many steps, and differs in its reward
alone. By construction of the world entropy falls with useful calls and with no others, so that it favors the method.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, between, both, not_worse, study

PROMPTS, GROUP = 8, 8  # of a step; episodes of each
LEARNING_RATE = 3e-4
LOST, LOST_REASON = 0.03, "three episodes in a hundred; calls that are saved at a higher price are not saved"
SAVED, SAVED_REASON = 0.25, "a quarter of a call, of about five: less than a twentieth of them is not worth a reward"
PAPER = "arXiv:2602.02050, abstract"
OURS = "control of ours"


@study("entropy-tools", paper="arXiv:2602.02050", trades="calls for certainty")
def entropy_tools(
    steps: Annotated[int, Field(ge=1, le=5000)] = 80,
    evaluations: Annotated[int, Field(ge=1, le=100)] = 4,
    test_episodes: Annotated[int, Field(ge=1, le=5000)] = 256,
) -> Study:
    """Rewards for calls that lower the model's entropy against penalties on their number, at equal steps."""

    def saving(text: str, arm: str, rival: str, source: str, *, primary: bool = False) -> Claim:
        test = both(
            better("calls", arm=arm, rival=rival, margin=SAVED, reason=SAVED_REASON),
            not_worse("accuracy", arm=arm, rival=rival, margin=LOST, reason=LOST_REASON),
        )
        return Claim(text, source=source, primary=primary, test=test)

    def ahead(text: str, outcome: str, arm: str, rival: str, source: str = OURS, **how: Any) -> Claim:
        return Claim(
            text, source=source, primary=how.pop("primary", False), test=better(outcome, arm=arm, rival=rival, **how)
        )

    return Study(
        seeds=5,  # from 0; seed 1000 was looked at while the world was built
        budget="optimizer_steps",
        dial="optimizer_steps",
        scale="A Llama of about 0.1 M parameters, taught chains of one to three lookups on the spot.",
        prepare=teach,
        arms=[
            Arm("sparse-full", kind="method", reward="outcome", no_call="full"),
            Arm("sparse-zero", kind="method", reward="outcome", no_call="zero"),
            Arm("dense", kind="method", reward="process", alpha=0.5),
            Arm("score-alone", kind="baseline", reward="score"),
            Arm("count-weak", kind="baseline", reward="count", weight=0.02),
            Arm("count-strong", kind="baseline", reward="count", weight=0.1),
            Arm("decreasing", kind="baseline", reward="decreasing"),
            Arm("dense-zero", kind="control", reward="process", alpha=0.0),
            Arm("sparse-margin", kind="control", reward="outcome", no_call="full", margin=0.05),
        ],
        outcomes=[
            Outcome("accuracy", better="higher", description="sampled episodes with the right answer"),
            Outcome(
                "accuracy_so_far", better="higher", description="of sampled episodes, mean over the training so far"
            ),
            Outcome("calls", better="lower", unit="calls", description="of an episode"),
            Outcome("useless_calls", better="lower", unit="calls", description="of an episode, repeats and stray keys"),
            Outcome(
                "reducing",
                better="higher",
                description="of the calls of a kind that count, those after which the entropy fell; by the policy or as it "
                "started",
            ),
        ],
        claims=[
            saving(
                "The sparse reward saves calls against the score alone, at no lower accuracy.",
                "sparse-full",
                "score-alone",
                f"{PAPER}: 72.07 % fewer calls than the mean of baselines",
                primary=True,
            ),
            saving(
                "Entropy is needed for it: the sparse reward saves calls against a strong price on each.",
                "sparse-full",
                "count-strong",
                OURS,
                primary=True,
            ),
            ahead(
                "The dense reward solves more than the score alone.",
                "accuracy_so_far",
                "dense",
                "score-alone",
                f"{PAPER}: 22.27 % better performance",
                primary=True,
                margin=0.01,
                reason="one episode in a hundred pays for reading the entropies",
            ),
            saving("The sparse reward saves calls against a weak price on each.", "sparse-full", "count-weak", OURS),
            saving(
                "The sparse reward saves calls against a factor that falls with their number.",
                "sparse-full",
                "decreasing",
                OURS,
            ),
            saving(
                "It saves calls, too, where an answer without a call is worth nothing.",
                "sparse-zero",
                "score-alone",
                OURS,
            ),
            ahead(
                "The rule for no call presses on the number: fewer calls where it pays in full than where it pays nothing.",
                "calls",
                "sparse-full",
                "sparse-zero",
            ),
            ahead(
                "It is the entropy in the dense reward: it solves more than without its bonus.",
                "accuracy_so_far",
                "dense",
                "dense-zero",
            ),
            ahead(
                "What is saved is what is useless: fewer repeats and stray keys than with the score alone.",
                "useless_calls",
                "sparse-full",
                "score-alone",
            ),
            Claim(
                "The signal knows useful calls from repeats, for the policy of the score alone.",
                source=OURS,
                primary=False,
                test=between(
                    "reducing",
                    arm="score-alone",
                    where_a={"call": "useful", "by": "policy"},
                    where_b={"call": "repeat", "by": "policy"},
                    units=("seed",),
                ),
            ),
            Claim(
                "Repeats learn to lower the entropy where that is paid: more do so by the policy than as it started.",
                source=OURS,
                primary=False,
                test=between(
                    "reducing",
                    arm="sparse-zero",
                    where_a={"call": "repeat", "by": "policy"},
                    where_b={"call": "repeat", "by": "start"},
                    units=("seed",),
                ),
            ),
            Claim(
                "Best accuracies on AIME, HotpotQA, 2WikiMultihopQA and MuSiQue, and deep search.",
                source="arXiv:2602.02050 as a public aggregator lists it",
                untested="needs a language model of billions of weights, a search engine and a code interpreter",
            ),
        ],
        run=train,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's model: what every arm of this seed starts from."""
    from equipoise.reinforcement import lookup_world

    lookup_world.teach(preparation)


def train(run: Run) -> None:
    """One arm from the seed's model on."""
    from equipoise.reinforcement.lookup_world import MAX_NEW_TOKENS, LookupWorld
    from equipoise.reinforcement.recipe import recipe

    options = run.options
    world = LookupWorld.open(run.seed, run.prepared, test=options["test_episodes"])
    made = recipe(
        "grpo",
        learning_rate=LEARNING_RATE,
        steps=options["steps"],
        prompts_per_step=PROMPTS,
        num_generations=GROUP,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=run.seed,
    )

    def look(now) -> None:
        found = world.measure(made)
        run.items("accuracy", world.names, found.right, at=now.at)
        run.items("accuracy_so_far", world.names, now.so_far("right", found.right), at=now.at)
        run.items("calls", world.names, found.calls, at=now.at)
        run.items("useless_calls", world.names, found.useless, at=now.at)
        for (by, kind), (lowered, count) in found.reduced.items():
            if count:
                run.measure("reducing", lowered, of=count, at=now.at, where={"call": kind, "by": by})

    world.reinforce(run, made, look, evaluations=options["evaluations"], **run.settings)
