"""Does entropy know a useful paragraph from a useless one? SmolLM2 on HotpotQA, before any training.

The model is shown one of two paragraphs that a question needs, thinks, is given the other, a distractor, or the same again,
and thinks again. Every arm is a signal read from the same thoughts; the units are questions, of which each seed has others.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, statistic, study

CARD = "arXiv:2602.02050, pilot analysis: helpful calls lower the entropy"
OURS = "control of ours"


def told_apart(useful: Any, useless: Any) -> float:
    """AUROC of a signal for what is useful against what is not; questions without one of both are left out."""
    import numpy as np

    from equipoise.core.scores import auroc

    there = ~(np.isnan(useful) | np.isnan(useless))
    values = np.concatenate([useful[there], useless[there]])
    return float(auroc(values, np.repeat([True, False], there.sum()))) if there.any() else float("nan")


def mean(values: Any) -> float:
    """The mean of what is there."""
    import numpy as np

    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


@study("entropy-tools-pilot", paper="arXiv:2602.02050", trades="calls for certainty", system="entropy-tools")
def entropy_tools_pilot(questions: Annotated[int, Field(ge=2, le=60)] = 50) -> Study:
    """How well the fall of a language model's entropy tells gold from distractor and repeated paragraphs."""

    def apart(
        text: str,
        other: str,
        *,
        rival: str | None = None,
        arm: str = "entropy-fall",
        source: str = OURS,
        primary: bool = False,
    ) -> Claim:
        threshold = {} if rival else {"margin": 0.5, "reason": "what a coin gets"}
        test = statistic(
            told_apart,
            arm=arm,
            rival=rival,
            outcomes=("drop_gold", f"drop_{other}"),
            units=("item",),
            name=f"AUROC, gold against {other}",
            **threshold,
        )
        return Claim(text, source=source, primary=primary, test=test)

    def drop(given: str, what: str) -> Outcome:
        return Outcome(f"drop_{given}", better="higher", description=f"how much the signal falls after {what}")

    return Study(
        seeds=3,
        budget="generated_tokens",
        scale="SmolLM2-135M-Instruct on questions of HotpotQA, two thoughts of 40 tokens each.",
        prepare=think,
        arms=[
            Arm("entropy-fall", kind="method", signal="entropy"),
            Arm("entropy-fall-relative", kind="method", signal="relative"),
            Arm("surprisal-fall", kind="baseline", signal="surprisal"),
            Arm("word-overlap", kind="baseline", signal="overlap"),
            Arm("no-copies", kind="control", signal="no-copies"),
        ],
        outcomes=[
            drop("gold", "the paragraph that is missing"),
            drop("distractor", "a paragraph that is not needed"),
            drop("repeat", "the paragraph that is known"),
            Outcome(
                "copied", better="lower", description="of the second thought's tokens, those that repeat what was given"
            ),
        ],
        claims=[
            apart(
                "The entropy falls more after the paragraph that is missing than after a distractor.",
                "distractor",
                source=CARD,
                primary=True,
            ),
            apart(
                "The entropy falls more after the paragraph that is missing than after one that is known.",
                "repeat",
                source=CARD,
                primary=True,
            ),
            Claim(
                "A repeat lowers the entropy, too.",
                source="card, known in advance",
                test=statistic(mean, arm="entropy-fall", outcomes=("drop_repeat",), units=("item",), name="mean fall"),
            ),
            apart(
                "Entropy knows distractors better than words in common with the question do.",
                "distractor",
                rival="word-overlap",
            ),
            apart(
                "Entropy knows them better than the surprisal of what was written.",
                "distractor",
                rival="surprisal-fall",
            ),
            apart(
                "It is not quoting: without copied tokens it knows them as well or better.",
                "distractor",
                arm="no-copies",
                rival="entropy-fall",
            ),
        ],
        run=signal,
    )


def think(preparation: Preparation) -> None:
    """Let the model think about every question, with each of the texts."""
    from equipoise.reinforcement import evidence_world

    evidence_world.measure(preparation, count=preparation.options["questions"])


def signal(run: Run) -> None:
    """One signal of the thoughts that were prepared."""
    import json

    from equipoise.reinforcement.evidence_world import GIVEN, THINK

    stored = json.loads((run.prepared / "drops.json").read_text(encoding="utf-8"))
    name = run.settings["signal"]
    for given in GIVEN:
        run.items(f"drop_{given}", stored["ids"], stored["found"][name][given])
        if name == "entropy":
            run.items("copied", stored["ids"], stored["found"]["copied"][given], where={"given": given})
    run.spend(generated_tokens=2 * THINK * len(GIVEN) * len(stored["ids"]))
