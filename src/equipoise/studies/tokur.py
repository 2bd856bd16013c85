"""TokUR on the scales: does noise on weights tell wrong answers from right ones better than length and entropy do?

A small decoder answers chains of sums, some right and some wrong, and every arm is a score of the same answers: TokUR's TU,
AU and EU in sum and mean; the clean model's log-probability and entropy in sum and mean, self-certainty, DeepConf; length
alone and a draw. The paper's table sets sums of the first against means of the others, so that the sums and the length are
the rivals here, and every score is also read among answers of equal length.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, study
from equipoise.study.declare import Kind

PAPER = "arXiv:2505.11737"
TABLE = f"{PAPER}, Table 1: Llama-3.2-1B on MATH500, AUROC"
CARD = "card, known in advance"
OURS = "control of ours"
POINT = "one pair of answers in a hundred, below which three more readings of every answer do not pay"


@study("tokur", paper=PAPER, trades="readings of an answer for knowing that it is wrong")
def tokur(
    answers: Annotated[int, Field(ge=100, le=3000)] = 3000,
    members: Annotated[int, Field(ge=2, le=32)] = 4,
    rank: Annotated[int, Field(ge=1, le=64)] = 8,
) -> Study:
    """TU, AU and EU, summed and as means, against log-probability, entropy, self-certainty, DeepConf and length.

    answers: of each seed's model, each to a problem of its own. members: readings of an answer, the first without noise.
    rank: of the noise, whose scale is chosen for each seed on answers to other problems.
    """

    def arm(name: str, kind: Kind) -> Arm:
        return Arm(name, kind=kind, score=name.replace("-", "_"))

    def ahead(arm: str, rival: str, outcome: str = "auroc", **margin: Any) -> Any:
        return better(outcome, arm=arm, rival=rival, units=("seed",), **margin)

    def exploratory(text: str, source: str, test: Any) -> Claim:
        return Claim(text, source=source, test=test, primary=False)

    point: dict[str, Any] = {"margin": 0.01, "reason": POINT}
    return Study(
        seeds=10,
        budget="answers",
        scale="A Llama of a million parameters, taught chains of sums until half of what it writes is sound; its own greedy "
        "answers, checked by rules.",
        prepare=prepare,
        arms=[
            *(arm(f"{of}-{over}", "method") for of in ("tu", "au", "eu") for over in ("sum", "mean")),
            *(arm(f"{of}-{over}", "baseline") for of in ("log-prob", "entropy") for over in ("sum", "mean")),
            arm("self-certainty", "baseline"),
            arm("deepconf", "baseline"),
            arm("length", "control"),
            arm("random", "control"),
        ],
        outcomes=[
            Outcome("auroc", better="higher", chance=0.5, description="right above wrong answers"),
            Outcome("auroc_within", better="higher", chance=0.5, description="the same, among answers of equal length"),
            Outcome("auprc", better="higher", description="average precision of right answers; chance is the accuracy"),
            Outcome("surest_half", better="higher", description="share right among the surest half of the answers"),
            Outcome("accuracy", better="higher", description="share right among all answers, of every arm the same"),
            Outcome("epistemic_share", better="higher", description="EU / TU at the sigma that was chosen"),
        ],
        claims=[
            Claim(
                "Summed TU tells wrong from right answers better than the length of the answer alone.",
                source=f"{TABLE} 80.6; length is not in the table",
                test=ahead("tu-sum", "length", **point),
            ),
            Claim(
                "It does so better than the summed entropy of the model without noise, which costs one reading.",
                source=f"{TABLE} 80.6 against 57.1 of the mean entropy",
                test=ahead("tu-sum", "entropy-sum", **point),
            ),
            exploratory(
                "Summed TU is better than the mean entropy, as the paper compares them.",
                TABLE,
                ahead("tu-sum", "entropy-mean", **point),
            ),
            exploratory(
                "Mean TU is better than the mean entropy.",
                f"{PAPER}, normalised by length: 57.1 against 57.1",
                ahead("tu-mean", "entropy-mean", **point),
            ),
            exploratory(
                "Summed EU is better than the summed entropy among answers of equal length.",
                CARD,
                ahead("eu-sum", "entropy-sum", "auroc_within", **point),
            ),
            exploratory("Mean EU is better than the mean entropy.", CARD, ahead("eu-mean", "entropy-mean", **point)),
            exploratory(
                "Summed TU is better than the summed log-probability.", OURS, ahead("tu-sum", "log-prob-sum", **point)
            ),
            exploratory(
                "Summed TU is better than self-certainty.", f"{TABLE} 71.2", ahead("tu-sum", "self-certainty", **point)
            ),
            exploratory("Summed TU is better than DeepConf.", f"{TABLE} 71.8", ahead("tu-sum", "deepconf", **point)),
            exploratory(
                "Noise adds to the surest half of the answers.", OURS, ahead("tu-sum", "entropy-sum", "surest_half")
            ),
            Claim(
                "AUROC of 80 on MATH500, 75 on GSM8K and 84 on DeepScaleR with Llama-3.2-1B.",
                source=TABLE,
                untested="needs that model, and 6,000 solutions of a thousand tokens each",
            ),
            Claim(
                "Particles steered by uncertainty answer more problems than ones steered by likelihood.",
                source=f"{PAPER}, particle filtering: 29.2 against 26.3 on MATH500",
                untested="the filter is there (uncertainty.particle_filter); chains of six steps leave it no room to steer",
            ),
        ],
        run=weigh,
    )


def prepare(preparation: Preparation) -> None:
    """Teach the seed's model, let it answer, and score its answers."""
    from equipoise.uncertainty import tokur_world

    tokur_world.prepare(preparation, **preparation.options)


def weigh(run: Run) -> None:
    """One arm: a score of the seed's answers against the truth."""
    from equipoise.uncertainty import tokur_world

    tokur_world.measure(run, tokur_world.AnsweredWorld.open(run.prepared))
