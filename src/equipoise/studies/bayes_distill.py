"""Bayesian distillation on the scales: is a student of an averaged prediction as calibrated as its teacher, in one pass?

Adapters on the upper blocks of SmolLM2 sort TREC's questions into six classes, after a few hundred examples. Every arm
predicts the same 500 test questions: the adapter as it is; with a temperature; Bayesian teachers over it; their students,
which see the same training questions without labels. Controls learn soft targets with no Bayes in them: smoothed labels, the
adapter's own predictions, BLoB's mean weights.

Calibration is judged by NLL and Brier: of 500 questions ECE is uncertain by three points, and under-confidence lowers it.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, not_worse, study

PAPER = "arXiv:2505.11731"
OURS = "control of ours"
CARD = "card, known in advance"
NATS = "a hundredth of a nat, a tenth of what separates the teachers' table's methods (NLL .52 to .26)"
NEAR = "two hundredths of a nat: what the draws of a teacher of ten passes change from seed to seed"
BAYES = ("tfb", "blob", "laplace", "ensemble", "mc-dropout")


@study("bayes-distill", paper=PAPER, trades="passes at query time for calibration")
def bayes_distill(
    model: str = "smollm2",
    train: Annotated[int, Field(ge=20, le=4000)] = 400,
    blocks: Annotated[int, Field(ge=1, le=24)] = 4,
    steps: Annotated[int, Field(ge=1, le=5000)] = 200,
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3,
) -> Study:
    """Students of Bayesian adapters against their teachers, the adapter, its temperature and soft targets without Bayes.

    model: of Llama's form. train: training questions. blocks: the upper ones, that adapters are on. steps, learning_rate: of
    every training, students' and teachers' alike.
    """

    def gains(outcome: str, arm: str, rival: str, text: str, source: str, *, primary: bool = False) -> Claim:
        how: dict[str, Any] = {"margin": 0.01, "reason": NATS} if outcome == "nll" else {}
        return Claim(text, source=source, primary=primary, test=better(outcome, arm=arm, rival=rival, **how))

    students = [
        Arm(f"{name}-student", kind="method", by="student", of=name) for name in ("tfb", "blob", "laplace", "ensemble")
    ]
    return Study(
        seeds=5,
        budget="optimizer_steps",
        scale="SmolLM2-135M-Instruct, de-quantised from 4 bits, its upper blocks with LoRA of rank 8 on queries, values and "
        "six output rows, unless another model was given; a few hundred of TREC's questions, six classes.",
        prepare=prepare,
        arms=[
            *students,
            Arm("mc-dropout-student", kind="method", by="student", of="mc-dropout"),
            *(Arm(name, kind="baseline", by="teacher", of=name) for name in BAYES),
            Arm("tfb-strict", kind="control", by="teacher", of="tfb-strict"),
            Arm("adapter", kind="baseline", by="adapter"),
            Arm("temperature", kind="baseline", by="temperature"),
            Arm("label-smoothing", kind="control", by="student", of="smoothed"),
            Arm("self-distilled", kind="control", by="student", of="adapter"),
            Arm("blob-mean", kind="control", by="teacher", of="blob-mean"),
            Arm("blob-mean-student", kind="control", by="student", of="blob-mean"),
        ],
        outcomes=[
            Outcome("nll", better="lower", unit="nats", description="of the right class, on the test questions"),
            Outcome("brier", better="lower", description="sum over classes of squared errors, from 0 to 2"),
            Outcome("accuracy", better="higher", chance=1 / 6, description="largest class at chance of a sixth"),
            Outcome("ece", better="lower", description="15 bins of the largest probability"),
            Outcome("confidence", better="lower", description="mean largest probability on the test questions"),
            Outcome(
                "target_confidence",
                better="lower",
                description="the same on the training questions: of what a student learns, else of what predicts",
            ),
            Outcome(
                "target_nll",
                better="lower",
                unit="nats",
                description="of the right class by the same; of the adapter far below its nll: it is over-confident",
            ),
            Outcome(
                "target_distance",
                better="higher",
                unit="nats",
                description="KL from the same to the adapter's own predictions: 0 where a teacher is the adapter itself",
            ),
        ],
        claims=[
            *(
                gains(outcome, f"{name}-student", "adapter", text, f"{PAPER}, abstract", primary=name == "tfb")
                for name, teacher in (("tfb", "TFB"), ("blob", "BLoB"))
                for outcome, text in (
                    ("nll", f"A student of {teacher} has a lower NLL than the adapter trained on labels."),
                    ("brier", f"A student of {teacher} has a lower Brier score than it."),
                )
            ),
            *(
                Claim(
                    f"A student of {teacher} is as good in NLL as its teacher, which takes ten passes.",
                    source=f"{PAPER}, abstract: comparable or better",
                    test=not_worse("nll", arm=f"{name}-student", rival=name, margin=0.02, reason=NEAR),
                    primary=name == "tfb",
                )
                for name, teacher in (("tfb", "TFB"), ("blob", "BLoB"))
            ),
            *(
                gains(
                    "nll",
                    f"{name}-student",
                    rival,
                    f"{teacher}: {text}",
                    source,
                )
                for name, teacher in (("tfb", "TFB"), ("blob", "BLoB"))
                for rival, text, source in (
                    ("temperature", "the student is better than the adapter with a fitted temperature.", CARD),
                    ("label-smoothing", "it is not that targets are soft: the student beats smoothed labels.", OURS),
                    ("self-distilled", "it is not distillation as such: the student beats a self-distilled one.", OURS),
                )
            ),
            gains("nll", "blob-student", "blob-mean-student", "Averaging adds to BLoB's mean weights.", OURS),
            gains("nll", "ensemble-student", "adapter", "A student of an ensemble beats its first member.", OURS),
            gains("nll", "laplace-student", "adapter", "A student of Laplace beats the adapter.", OURS),
            gains("nll", "tfb", "adapter", "The teacher TFB itself has a lower NLL.", "arXiv:2412.05723, tables"),
            gains("nll", "blob", "adapter", "The teacher BLoB itself has a lower NLL.", "arXiv:2406.11675, tables"),
            gains("nll", "tfb", "tfb-strict", "TFB owes that to the looser rule of its code.", OURS),
            Claim(
                "It holds for models of billions of weights, on WinoGrande, ARC, OpenBookQA and BoolQ.",
                source=PAPER,
                untested="needs such models and those data sets",
            ),
        ],
        run=predict,
    )


def prepare(preparation: Preparation) -> None:
    """Read the questions, and train what the arms of a seed share."""
    from equipoise.uncertainty import bayes_world

    bayes_world.prepare(preparation)


def predict(run: Run) -> None:
    """One arm: predict the test questions."""
    from equipoise.uncertainty import bayes_world

    bayes_world.measure(run)
