"""Chain-of-Memory read by a small model: is evidence in a chain used better than the same turns in another order?

Two hundred questions of LoCoMo, twenty a seed, and prints of at most 120 tokens, which all arms fill in their own way. The
evidence alone says how well the model reads, the question alone what it knows or guesses. Effects that the method's paper
has are smaller than what so few questions show, so that only one thing gets a verdict: whether the model reads at all.
"""

from equipoise.study import Arm, Claim, Outcome, Preparation, Run, Study, better, study

PAPER = "arXiv:2601.14287"
OURS = "control of ours"
WORDS = "two words in a hundred of those of the gold"


@study("chain-of-memory-reader", paper=PAPER, trades="printed tokens for answers from them", system="chain-of-memory")
def chain_of_memory_reader(reader: str = "smollm2") -> Study:
    """A small model's answers from chains, from as many tokens of the ranking, and from the same turns in other orders.

    reader: a model of `equipoise models list`, a path, or a hub id.
    """

    def ahead(text: str, arm: str, rival: str, source: str = OURS, *, primary: bool = False) -> Claim:
        test = better("answer_f1", arm=arm, rival=rival, margin=0.02, reason=WORDS, units=("seed",))
        return Claim(text, source=source, test=test, primary=primary)

    return Study(
        seeds=10,  # twenty questions and an embedder each; 1000 was looked at
        budget="calls",
        dial="allowed_tokens",
        scale="SmolLM2-135M-Instruct, de-quantised from 4 bits, unless another reader was given; 200 questions of LoCoMo, "
        "120 words a print.",
        prepare=prepare,
        arms=[
            Arm("chain-of-memory", kind="method", by="mean"),
            Arm("chain-published", kind="method", by="published"),
            Arm("rank-k", kind="baseline", by="rank"),
            Arm("same-tokens", kind="baseline", by="same-tokens", against="mean"),
            Arm("union-ranked", kind="control", by="union-ranked"),
            Arm("union-by-time", kind="control", by="union-by-time"),
            Arm("published-shuffled", kind="control", by="shuffled"),
            Arm("chain-no-headers", kind="control", by="bare"),
            Arm("nothing", kind="control", by="nothing"),
            Arm("oracle", kind="reference", by="oracle"),
        ],
        outcomes=[
            Outcome("answer_f1", better="higher", description="words of an answer, as LoCoMo scores them"),
            Outcome("evidence_recall", better="higher", description="questions all of whose evidence is printed"),
        ],
        claims=[
            ahead("It reads: evidence makes its answers better.", "oracle", "nothing", primary=True),
            ahead(
                "It answers better from chains than from as many tokens of the ranking.",
                "chain-of-memory",
                "same-tokens",
                f"{PAPER}, LongMemEval-S: 76.40 against 66.00",
            ),
            ahead("Better than from the same turns as a ranking.", "chain-no-headers", "union-ranked"),
            ahead("Better than from the same turns in the order of time.", "chain-no-headers", "union-by-time"),
            ahead(
                "Better from the published print than from the same turns, as often repeated, shuffled.",
                "chain-published",
                "published-shuffled",
            ),
            ahead("Headers help.", "chain-of-memory", "chain-no-headers"),
            Claim(
                "A large model answers 10.4 % more questions from chains than from the turns as they are ranked.",
                source=f"{PAPER}, abstract",
                untested="needs a large language model that reads, and one that judges",
            ),
        ],
        run=read,
    )


def prepare(preparation: Preparation) -> None:
    """Fit the seed's embedder on LoCoMo, and rank its turns for every question."""
    from equipoise.agents import chain_world

    preparation.folder.mkdir(parents=True, exist_ok=True)
    chain_world.prepare_locomo(preparation.folder, preparation.generator)


def read(run: Run) -> None:
    """One arm and seed: the seed's twenty questions."""
    from equipoise.agents import chain_reading

    against, reader = run.settings.get("against", ""), run.options["reader"]
    chain_reading.measure(run, arm=run.settings["by"], against=against, reader=reader)
