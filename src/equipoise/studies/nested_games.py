"""Games one after another in one trajectory against games side by side in a batch, at equal numbers of games played.

Per seed a tiny decoder is taught the forms of four games, and moves of which a part is right. Every arm goes on from there
with as many games of each kind, in groups of 16 from the same seed, and the same loss. It differs in what an episode is, how
the scores of games become its reward, and which tokens answer for which score. Each game is judged alone.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Select, Study, better, not_worse, study

PROMPTS, GROUP = 2, 16  # nested episodes of a step, or as many games of each kind; responses to each
# What no skill gets; that these are the environments' own levels is a test.
CHANCE = {"sums": 0.0955, "matrix": 0.5, "tictactoe": 0.2102, "spy": 0.38}
CHANCE_TRANSFER = {"larger-sums": 0.0801, "mirrored-tictactoe": 0.2102}
TABLE = "arXiv:2601.05633 v1, table of results"
OURS = "control of ours"
MARGIN = 0.03
SAME = (
    "in the paper's table the games' own means are equal (47.8 nested and 47.6 mixed at 7 B, 40.1 and 40.2 at 1.5 B), and "
    "one score of 100 episodes has a standard error of 5 points"
)


@study("nested-games", paper="arXiv:2601.05633", trades="a clear signal for one context")
def nested_games(
    steps: Annotated[int, Field(ge=2, le=5000)] = 64,
    evaluations: Annotated[int, Field(ge=1, le=50)] = 2,
    episodes: Annotated[int, Field(ge=2, le=5000)] = 400,
    warm_up: Annotated[int, Field(ge=1, le=10_000)] = 600,
) -> Study:
    """Nested training (mean, minimum, product, all, credit by segment) against mixing, rotation and each game alone."""
    grid = {"learning_rate": [1e-4, 3e-4]}

    def arm(name: str, kind: Literal["method", "baseline", "control"]) -> Arm:
        return Arm(name, kind=kind, grid=grid)

    def ahead(text: str, arm: str, rival: str, outcome: str = "success", source: str = OURS, **more: Any) -> Claim:
        return Claim(text, source=source, primary=False, test=better(outcome, arm=arm, rival=rival, **more))

    return Study(
        seeds=5,  # from 0; seeds from 1000 on were looked at while the world was built
        budget="games",
        scale="A Llama of about 0.1 M parameters, taught the forms of four games on the spot.",
        prepare=teach,
        arms=[
            arm("nested-mean", "method"),
            arm("nested-min", "method"),
            arm("nested-product", "method"),
            arm("nested-all", "method"),
            arm("nested-segments", "method"),
            arm("mixed", "baseline"),
            arm("rotation", "baseline"),
            *(arm(f"only-{game}", "control") for game in CHANCE),
            Arm("base", kind="reference", fixed="nothing is learnt"),
        ],
        select=Select("success", seeds=1),
        outcomes=[
            Outcome("success", better="higher", description="of episodes of each game alone, all games alike"),
            *(
                Outcome(game, better="higher", chance=chance, description="success in this game alone")
                for game, chance in CHANCE.items()
            ),
            Outcome("transfer", better="higher", description="success in games that nobody learns from, both alike"),
            *(
                Outcome(game, better="higher", chance=chance, description="success in this game, held out")
                for game, chance in CHANCE_TRANSFER.items()
            ),
            Outcome(
                "worst_lead", better="higher", chance=0.0, description="smallest lead over its chance level of a game"
            ),
            Outcome("valid", better="higher", description="turns that were understood and allowed"),
            Outcome(
                "entropy",
                better="higher",
                unit="nats",
                description="of the tokens sampled in the last quarter of the steps",
            ),
            Outcome(
                "gradient_variation",
                better="lower",
                description="standard deviation of the gradient's norm in its means, second half of the steps",
            ),
            Outcome(
                "success_in_training",
                better="higher",
                description="of a game as it is trained on, at temperature 1, in the last quarter of the steps",
            ),
        ],
        claims=[
            Claim(
                "What is learnt from nested games carries over to held-out games better than from mixed ones.",
                source=f"{TABLE}: 55.84 against 53.90 on general benchmarks (7 B, all four tasks)",
                test=better("transfer", arm="nested-mean", rival="mixed"),
            ),
            Claim(
                "In the games themselves nesting loses nothing against mixing.",
                source=f"{TABLE}: games' own scores, all four tasks",
                test=not_worse("success", arm="nested-mean", rival="mixed", margin=MARGIN, reason=SAME),
            ),
            Claim(
                "Nesting keeps the gradient's norm steadier than mixing.",
                source="arXiv:2601.05633 v1, training dynamics",
                test=better("gradient_variation", arm="nested-mean", rival="mixed", units=("seed",)),
            ),
            ahead(
                "Nesting keeps more entropy than mixing.",
                "nested-mean",
                "mixed",
                "entropy",
                "arXiv:2601.05633 v1, training dynamics",
                units=("seed",),
            ),
            ahead(
                "Nesting balances: the worst game is further above chance than with mixing.",
                "nested-mean",
                "mixed",
                "worst_lead",
                "arXiv:2601.05633 v1, its reading as a conjunction",
                units=("seed",),
            ),
            Claim(
                "One game a step, in rotation, loses nothing against nesting.",
                source="arXiv:2601.05633 v2, which trains so in place of nesting",
                primary=False,
                test=not_worse("success", arm="rotation", rival="nested-mean", margin=MARGIN, reason=SAME),
            ),
            ahead(
                "One advantage for all games is what costs: with credit by segment more is solved.",
                "nested-segments",
                "nested-mean",
            ),
            ahead(
                "A true conjunction, 1 where all is solved, teaches less than the mean.", "nested-mean", "nested-all"
            ),
            ahead("The minimum lifts the worst game.", "nested-min", "nested-mean", "worst_lead", units=("seed",)),
            *(
                ahead(
                    f"Mixing interferes: as many episodes of {game} alone teach it better.",
                    f"only-{game}",
                    "mixed",
                    game,
                    f"{TABLE}: mixing hurts in-domain",
                    units=("seed",),
                )
                for game in CHANCE
            ),
        ],
        run=train,
    )


def teach(preparation: Preparation) -> None:
    """Teach the seed's model the forms: what every arm of this seed starts from."""
    from equipoise.reinforcement import nested_world

    nested_world.teach(preparation, steps=preparation.options["warm_up"])


def train(run: Run) -> None:
    """One arm from the seed's model on."""
    from equipoise.reinforcement import nested_world
    from equipoise.reinforcement.recipe import recipe

    options: dict[str, Any] = run.options
    name: Any = run.arm  # one of the words of `nested_world.Arm`, or "base"
    world = nested_world.NestedWorld.open(run.seed, run.prepared)

    def look(now) -> None:
        judged(run, world, now.at, options["episodes"])
        run.measure("entropy", now.recent("entropy"), at=now.at)
        run.measure("gradient_variation", now.gradient_variation, at=now.at)
        for game in CHANCE:
            seen = now.recent(f"success/{game}")
            if not math.isnan(seen):
                run.measure("success_in_training", seen, at=now.at, where={"game": game})

    if name == "base":
        judged(run, world, {"step": 0, "games": 0, "generated_tokens": 0}, options["episodes"])
        return
    made = recipe(
        "starpo",
        **run.settings,
        steps=options["steps"],
        prompts_per_step=PROMPTS,
        num_generations=GROUP,
        rollout_batch_size=128,
        max_new_tokens=nested_world.MAX_NEW_TOKENS,
        seed=run.seed,
    )
    world.reinforce(run, made, name, look, evaluations=options["evaluations"])


def judged(run: Run, world: Any, at: dict[str, int], episodes: int) -> None:
    """Measure every game, and every one that is held out, with the model as it is."""
    from equipoise.reinforcement.nested_world import GAMES, TRANSFER

    groups = {
        "success": ({name: game.make for name, game in GAMES.items()}, CHANCE),
        "transfer": (TRANSFER, CHANCE_TRANSFER),
    }
    leads, valid = [], []
    for outcome, (makers, chance) in groups.items():
        played = world.evaluate(makers, episodes=episodes)
        ids = [f"{name} {episode.seed}" for name, found in played.items() for episode in found]
        run.items(outcome, ids, [episode.success for found in played.values() for episode in found], at=at)
        for name, found in played.items():
            solved = sum(episode.success for episode in found)
            run.measure(name, solved, of=len(found), at=at)
            if outcome == "success":
                leads.append(solved / len(found) - chance[name])
                valid += [episode.valid for episode in found]
    run.measure("worst_lead", min(leads), at=at)
    run.measure("valid", sum(valid) / len(valid), at=at)
