"""Sampling fidelity on the scales: do samplers of equal results differ in their probabilities, as D-models and E-models are
said to?

Two small models are taught texts of the same targets: one independent draws, one a quota. How they come by their results is
known, so that the measures can be wrong. Beside them stand samplers whose probabilities are written down, and SmolLM2.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, between, both, not_worse, study

PAPER = "arXiv:2601.17865"
ABSTRACT = f"{PAPER}, abstract"
OURS = "control of ours"
CARD = "card, known in advance"
APART = (
    "three times the card's distance of its E-model from the target, and less than half of what lies between its two"
)
NOISE = "the floor of 64 independent draws is 0.07 and 0.14: half of the smaller would not be seen in a result"
OWN = {"temperature": "own"}


@study("sampling-fidelity", paper=PAPER, trades="diverse draws for stable lists")
def sampling_fidelity(
    model: str = "smollm2",
    steps: Annotated[int, Field(ge=1, le=20_000)] = 1600,
    sequences: Annotated[int, Field(ge=2, le=1_000)] = 64,
    model_sequences: Annotated[int, Field(ge=2, le=1_000)] = 8,
) -> Study:
    """Two taught samplers, written-down ones and a language model, asked for the paper's two distributions.

    model: the language model that is looked at beside them. steps: of teaching. sequences: of 64 values for each target,
    model_sequences of the language model.
    """

    def ahead(arm: str, rival: str, outcome: str, **how: Any) -> Any:
        return better(outcome, arm=arm, rival=rival, where=OWN, **how)

    def exploratory(text: str, source: str, test: Any) -> Claim:
        return Claim(text, source=source, test=test, primary=False)

    apart: dict[str, Any] = {"margin": 0.12, "reason": APART}
    return Study(
        seeds=6,  # of weights, texts and draws
        budget="generated_tokens",
        dial="layer",
        scale="Two decoders of 0.1 million parameters, taught on the spot; SmolLM2-135M-Instruct, de-quantised from 4 bits, "
        "unless another model was given. The paper's models have billions.",
        prepare=prepare,
        arms=[
            Arm("e-model", kind="method", by="taught", corpus="independent"),
            Arm("d-model", kind="method", by="taught", corpus="quota"),
            Arm("independent-draws", kind="baseline", by="stream", stream="independent"),
            Arm("quota-draws", kind="baseline", by="stream", stream="quota"),
            Arm("copying-draws", kind="baseline", by="stream", stream="copying"),
            Arm("uniform-draws", kind="control", by="stream", stream="uniform"),
            Arm("language-model", kind="reference", by="language"),
        ],
        outcomes=[
            Outcome("a_token", better="lower", description="distance of a slot's probabilities from the target"),
            Outcome("a_result", better="lower", description="distance of a sequence's frequencies from the target"),
            Outcome("step", better="lower", description="distance of probabilities from one slot to the next"),
            Outcome("entropy_ratio", better="higher", description="entropy at a slot over the target's; 1 is right"),
            Outcome("bias", better="lower", description="squared distance of the mean probabilities"),
            Outcome("dispersion", better="lower", description="variance of the probabilities over slots"),
            Outcome("e_score", better="higher", description="1: the target at each slot; 0: one symbol at a time"),
            Outcome("leak", better="lower", description="probability of what is no symbol"),
            Outcome("slope", better="lower", description="of a probability on what was drawn too often; below 0: a quota"),
            Outcome("lens", better="lower", description="a_token of each block's states through the output matrix"),
        ],
        claims=[
            Claim(
                "Where results are alike, probabilities may not be: the sampler taught a quota is as near to the target in "
                "its frequencies, and further from it at each slot.",
                source=ABSTRACT,
                test=both(
                    not_worse("a_result", arm="d-model", rival="e-model", where=OWN, margin=0.035, reason=NOISE),
                    ahead("e-model", "d-model", "a_token", **apart),
                ),
            ),
            Claim(
                "Its probabilities vary more from slot to slot.",
                source=ABSTRACT,
                test=ahead("e-model", "d-model", "step", **apart),
            ),
            exploratory(
                "What sets it apart is dispersion, the variance of its probabilities, not their mean.",
                CARD,
                both(
                    ahead("e-model", "d-model", "dispersion", margin=0.1, reason="half of the card's 0.2"),
                    not_worse("bias", arm="d-model", rival="e-model", where=OWN, margin=0.02, reason="a tenth of that"),
                ),
            ),
            exploratory(
                "A temperature brings it nearer to the target at each slot.",
                CARD,
                between(
                    "a_token", arm="d-model", where_a={"temperature": "best"}, where_b=OWN, margin=0.05,
                    reason="less than a twentieth would not change what a user does",
                ),
            ),
            exploratory(
                "Yet flattened it stays further than the sampler taught independent draws is as it stands.",
                OURS,
                better("a_token", arm="e-model", rival="d-model", where={"temperature": "best"}, **apart),
            ),
            exploratory(
                "It holds back what it has written too often, more than the other.",
                OURS,
                better(
                    "slope", arm="d-model", rival="e-model", where={"task": "extreme"}, units=("seed",), margin=0.1,
                    reason="a tenth more of a share then lowers the next probability by a hundredth",
                ),
            ),
            exploratory(
                "A kept quota is nearer to the target in its frequencies than independent draws can be.",
                CARD,
                ahead("quota-draws", "independent-draws", "a_result"),
            ),
            exploratory(
                "The language model is nearer to the target at a slot than if all symbols were alike to it.",
                OURS,
                ahead("language-model", "uniform-draws", "a_token"),
            ),
            Claim(
                "Qwen-2.5 is of the first kind and Mistral-Small of the second.",
                source=ABSTRACT,
                untested="needs models of 7 and 24 billion parameters",
            ),
            Claim(
                "In code generation the first kind is more stable and the second more diverse.",
                source=ABSTRACT,
                untested="needs models of both kinds that solve MBPP: SmolLM2-135M solves next to nothing of it, and one "
                "model gives no relation",
            ),
            Claim(
                "In recommendation the first kind is more stable and the second more diverse.",
                source=ABSTRACT,
                untested="needs logs of users, which are not among the data, and models that can recommend",
            ),
        ],
        run=measure,
    )  # fmt: skip


def prepare(preparation: Preparation) -> None:
    """Teach the two samplers of this seed."""
    from equipoise.uncertainty import sampling_world

    sampling_world.prepare(preparation)


def measure(run: Run) -> None:
    """One sampler, asked for both distributions."""
    from equipoise.uncertainty import sampling_world

    sampling_world.measure(run)
