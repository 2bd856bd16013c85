"""RouterXBench on the scales: can a probe on a small model's states of a prompt tell whether its answer will be right?

SmolLM2 answers generated prompts of five domains, a verifier says which answers are right, and every arm scores prompts that
it has not learnt from: probes on the states, what the model says of itself, classifiers of sentence vectors, the length, a
draw. All arms learn from the same labels, or from none; what they are made of is read once. The strong model counts as
right, so that a call is wasted where the small one was right, and never for want of strength.

AUROC is the mean over domains: of domains together it would measure how well they are told apart. The scenarios' measures
are of all prompts as one stream, where that helps.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, study
from equipoise.study.declare import Kind

PAPER = "arXiv:2602.11877"
CARD = "card, known in advance"
OURS = "control of ours"
POINT = "one pair of prompts in a hundred, below which no user would see that routing changed"
TWO_POINTS = "the paper has ten points; a fifth of them pays for reading states and for labels"
BANDS = "c = [0, 0.3], rho = [0.85, 0.95]"
LOGITS = ("max-logit", "margin", "logit-margin", "entropy", "top10-variance", "top10-variance-reversed")
CHAINS = ("chain-of-embedding", "chain-real", "chain-complex")


@study("routerxbench", paper=PAPER, trades="calls to a strong model for quality")
def routerxbench(
    model: str = "smollm2",
    prompts: Annotated[int, Field(ge=40, le=2000)] = 1200,
    asked: Annotated[int, Field(ge=2, le=60)] = 40,
    proxy: Annotated[int, Field(ge=0, le=1000)] = 400,
) -> Study:
    """Probes on the states of a prompt against logits, likelihood, confidence, samples, sentence vectors, length and chance.

    model: whose answers are predicted. prompts: of each domain, half to learn from; of differences at most 400, of
    choice 580. asked: tested prompts of each domain about which the model is asked and sampled. proxy: problems of
    Big-Math, 0 where EQUIPOISE_DATA has none.
    """

    def arm(name: str, kind: Kind, by: str) -> Arm:
        return Arm(name, kind=kind, by=by, score=name)

    def ahead(arm: str, rival: str, outcome: str = "auroc", **how: Any) -> Any:
        return better(outcome, arm=arm, rival=rival, **how)

    def exploratory(text: str, source: str, test: Any) -> Claim:
        return Claim(text, source=source, test=test, primary=False)

    two: dict[str, Any] = {"margin": 0.02, "reason": TWO_POINTS}
    seeds: dict[str, Any] = {"units": ("seed",)}
    return Study(
        seeds=10,  # draws of the prompts learnt from, and of the probes' batches; what is tested is the same for all
        budget="labels",
        scale="SmolLM2-135M-Instruct, de-quantised from 4 bits, unless another model was given; its own answers to short "
        "generated prompts, checked by rules. Big-Math's labels are those of Llama-3.1-8B.",
        prepare=prepare,
        arms=[
            arm("dirichlet", "method", "probe"),
            *(arm(name, "baseline", "probe") for name in ("mean", "softmax", "last", "max")),
            arm("best-logit", "baseline", "best-logit"),
            *(arm(name, "baseline", "given") for name in (*LOGITS, "perplexity", "verbalised", "semantic-entropy")),
            *(arm(name, "baseline", "given") for name in CHAINS),
            *(arm(f"embedding-{name}", "baseline", "vectors") for name in ("knn", "logistic", "mlp")),
            arm("length", "control", "given"),
            arm("random", "control", "random"),
        ],
        outcomes=[
            Outcome(
                "auroc", better="higher", chance=0.5, description="solved above unsolved prompts, mean over domains"
            ),
            Outcome(
                "auroc_asked",
                better="higher",
                chance=0.5,
                description="the same, of the prompts that the model is asked about",
            ),
            Outcome("auroc_transfer", better="higher", chance=0.5, description="on products, which no arm learns from"),
            Outcome(
                "auroc_proxy",
                better="higher",
                chance=0.5,
                description="on Big-Math, learnt there: does Llama-3.1-8B solve it?",
            ),
            Outcome("lpm", better="higher", description=f"mean quality at a tight budget; {BANDS}"),
            Outcome("mpm", better="higher", description=f"mean quality between budget and high quality; {BANDS}"),
            Outcome("hcr", better="higher", description=f"calls saved where quality is high; {BANDS}"),
            Outcome(
                "useful_calls",
                better="higher",
                description="of the 30 % that are called for, those that the model missed",
            ),
            Outcome(
                "sent_tokens",
                better="lower",
                description="of all tokens of prompts, those that go with the 30 % called for",
            ),
            Outcome(
                "solve_rate",
                better="higher",
                description="of the half to learn from; a domain outside [0.2, 0.8] is left out of all else",
            ),
        ],
        claims=[
            Claim(
                "All layers together rank a model's prompts better than its last layer does.",
                source=f"{PAPER}, aggregation: AUROC 68.04 for the mean, 53.91 for the last layer",
                test=ahead("mean", "last", margin=0.01, reason=POINT),
            ),
            Claim(
                "The probe ranks them better than the best score of the next token's logits.",
                source=f"{PAPER}, abstract: 16.68 % above the best baseline",
                test=ahead("dirichlet", "best-logit", **two),
            ),
            exploratory(
                "Noise on the layers' weights adds to their plain mean.",
                f"{PAPER}, aggregation: AUROC 68.70 against 68.04",
                ahead("dirichlet", "mean"),
            ),
            exploratory("Noise adds to weights that are learnt without it.", CARD, ahead("dirichlet", "softmax")),
            exploratory("It is not the length: the probe ranks better.", OURS, ahead("dirichlet", "length", **two)),
            exploratory(
                "States of all layers rank better than the sentence vectors that a classifier gets.",
                f"{PAPER}, baselines",
                ahead("dirichlet", "embedding-logistic", **two),
            ),
            exploratory(
                "The probe ranks better than the likelihood of the prompt.",
                OURS,
                ahead("dirichlet", "perplexity", **two),
            ),
            exploratory(
                "It holds on an operation that it has not seen.",
                f"{PAPER}, out of domain",
                ahead("dirichlet", "random", "auroc_transfer", **two),
            ),
            exploratory(
                "There, too, all layers rank better than the last.",
                f"{PAPER}, out of domain",
                ahead("mean", "last", "auroc_transfer"),
            ),
            exploratory(
                "All layers predict another model's success on Big-Math better than the last one.",
                CARD,
                ahead("mean", "last", "auroc_proxy", margin=0.01, reason=POINT),
            ),
            exploratory(
                "At a tight budget the probe's calls buy more quality than the best logit score's.",
                f"{PAPER}, LPM",
                ahead("dirichlet", "best-logit", "lpm", **seeds),
            ),
            Claim(
                "18.86 % above the best baseline where quality has to be high, with Llama-3.1-8B before GPT-5.",
                source=f"{PAPER}, abstract",
                untested="needs that pair, and a judge of open-ended answers",
            ),
            Claim(
                "The probe holds for other model families and sizes.",
                source=PAPER,
                untested="needs models of several families and of billions of weights",
            ),
            Claim(
                "It helps in agentic workflows, on HotpotQA with a search tool.",
                source=PAPER,
                untested="needs an agent that the small model can follow for twenty steps",
            ),
        ],
        run=rank,
    )


def prepare(preparation: Preparation) -> None:
    """Let the model answer the prompts and read its states of them, unless another seed has done so."""
    from equipoise.routing import routing_world

    routing_world.prepare(preparation)


def rank(run: Run) -> None:
    """One arm: learn from the seed's prompts, score those that are tested."""
    from equipoise.routing import routing_world

    routing_world.measure(run, routing_world.RoutingWorld.open(run.prepared))
