"""Chain-of-Memory on the scales: do chains hold more of the evidence than plain ranking does in as many printed tokens?

At equal k they cannot: every chain is made of the k nearest turns. So what is held equal is what a reader pays for, the
printed tokens, question by question: the rival prints as many of the ranking's. A made-up store in which a second hop
is found only through the first, clean and among chatter, and LoCoMo, with vectors of word counts by three embedders.

Controls keep the turns and change the order, keep the multiset and shuffle it, repeat the ranking, print as many turns by
rank, leave the headers out. No model reads: evidence that is not printed cannot be used, evidence that is may be.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import (
    Arm,
    Claim,
    Outcome,
    Preparation,
    Run,
    Study,
    better,
    between,
    cheaper,
    matched,
    study,
)

PAPER = "arXiv:2601.14287"
CARD = "card, known in advance"
OURS = "control of ours"
POINT = "one question in a hundred; the paper's own effect is ten"
FIVE = "a hop that is found through another is what the method is for: less than one question in twenty would not pay"
HALF = "half as much again is what makes a step of its own worth leaving out"
TENTH = "a tenth of what is read is below what another prompt changes"
FREE, TIGHT = 1920, 120


@study("chain-of-memory", paper=PAPER, trades="printed tokens for evidence in them")
def chain_of_memory(trials: Annotated[int, Field(ge=2, le=2000)] = 200, locomo: bool = True) -> Study:
    """Chains against the ranking of as many tokens, the same turns in other orders, and repetition without order.

    trials: questions of each made-up store. locomo: also the questions of EQUIPOISE_DATA's folder locomo.
    """
    clean, far, chatter = (
        {"world": "two-hop", "rho": rho, "chatter": turns} for rho, turns in ((0.6, 0), (0.3, 0), (0.6, 10))
    )
    talk = {"world": "locomo", "embedder": "lsa"}

    def at(allowed: int, where: dict[str, Any]) -> dict[str, Any]:
        units = ("seed", "item") if where["world"] == "locomo" else ("seed",)
        return {"at": {"allowed_tokens": allowed}, "where": where, "units": units}

    def ahead(arm: str, rival: str, where: dict[str, Any], margin: float, reason: str, allowed: int = FREE) -> Any:
        return better("evidence_recall", arm=arm, rival=rival, margin=margin, reason=reason, **at(allowed, where))

    def exploratory(text: str, source: str, test: Any) -> Claim:
        return Claim(text, source=source, test=test, primary=False)

    claims = [
        Claim(
            "Where the second hop is near the first and few other turns are, chains hold both more often than as many "
            "tokens of the ranking.",
            source=f"{PAPER}, abstract: evidence is linked",
            test=ahead("chain-of-memory", "same-tokens", clean, 0.05, FIVE, TIGHT),
        ),
        exploratory(
            "They still do with a second hop that is farther from the first.",
            CARD,
            ahead("chain-of-memory", "same-tokens", far, 0.05, FIVE, TIGHT),
        ),
        exploratory(
            "Chatter near the first hop takes the gain away.",
            CARD,
            between(
                "gain",
                arm="chain-of-memory",
                where_a=clean,
                where_b=chatter,
                margin=0.05,
                reason=FIVE,
                at={"allowed_tokens": TIGHT},
                units=("seed",),
            ),
        ),
        exploratory(
            "The product of both gates is better than the score alone where evidence is linked.",
            f"{PAPER}, ablation: 76.40 against 66.15",
            better(
                "gain", arm="chain-of-memory", rival="chain-query-gate", margin=0.05, reason=FIVE, **at(TIGHT, clean)
            ),
        ),
        exploratory(
            "It is better than the context alone there.",
            f"{PAPER}, ablation: 76.40 against 69.35",
            better(
                "gain", arm="chain-of-memory", rival="chain-context-gate", margin=0.05, reason=FIVE, **at(TIGHT, clean)
            ),
        ),
        exploratory(
            "The mean as context costs fewer embedded tokens than embedding the joined texts at every step.",
            OURS,
            cheaper(
                "prompt_tokens", arm="chain-of-memory", rival="chain-published", by=1.5, phase="embed", reason=HALF
            ),
        ),
        exploratory(
            "It takes less time, too, where embedding is free.",
            OURS,
            cheaper("seconds", arm="chain-of-memory", rival="chain-published", phase="query"),
        ),
        exploratory(
            "It prints fewer tokens than plain retrieval of the same k.",
            f"{PAPER}, abstract: 2.7 % of the tokens of complex systems",
            cheaper("prompt_tokens", arm="chain-of-memory", rival="rank-k", by=1.1, phase="query", reason=TENTH),
        ),
        exploratory(
            "It does with everything that is embedded counted: the store once, the questions, the contexts.",
            OURS,
            cheaper("prompt_tokens", arm="chain-of-memory", rival="rank-k", by=1.1, reason=TENTH),
        ),
        exploratory(
            "It costs less than a tenth of reading the full text, with everything that is embedded counted.",
            f"{PAPER}, abstract",
            cheaper(
                "prompt_tokens",
                arm="chain-of-memory",
                rival="full-text",
                by=10,
                reason="a tenth of the price is what people change their system for",
            ),
        ),
    ]
    if locomo:
        claims[1:1] = [
            Claim(
                "In dialogues chains hold all evidence of more questions than as many tokens of the ranking.",
                source=f"{PAPER}, abstract: 10.4 % above retrieval of turns",
                test=ahead("chain-of-memory", "same-tokens", talk, 0.01, POINT),
            ),
            Claim(
                "The order of a chain is better than the same turns in the order of the ranking, where a print has room "
                "for the first of them.",
                source=f"{PAPER}: evidence evolves along a chain",
                test=ahead("chain-no-headers", "union-ranked", talk, 0.01, POINT, TIGHT),
            ),
            exploratory(
                "And better than the same turns in the order of time.",
                OURS,
                ahead("chain-no-headers", "union-by-time", talk, 0.01, POINT, TIGHT),
            ),
            exploratory(
                "With repetition, as published, it holds more than as many tokens of the ranking.",
                f"{PAPER}, released code",
                ahead("chain-published", "same-tokens-published", talk, 0.01, POINT),
            ),
            exploratory(
                "The published order is better than the same turns shuffled, as often repeated.",
                OURS,
                ahead("chain-published", "published-shuffled", talk, 0.01, POINT, TIGHT),
            ),
            exploratory(
                "The gate leaves out turns that do not matter: as many turns by rank hold less.",
                OURS,
                ahead("chain-no-headers", "union-size", talk, 0.01, POINT),
            ),
            exploratory(
                "A floor of the embedder's own cosines stops at a better place than a fixed beta.",
                "card, adaptive beta",
                better(
                    "gain", arm="chain-adaptive", rival="chain-of-memory", margin=0.01, reason=POINT, **at(FREE, talk)
                ),
            ),
            exploratory(
                "Chains come to the same evidence recall with fewer printed tokens than the ranking.",
                f"{PAPER}, abstract",
                matched(
                    "evidence_recall",
                    arm="chain-of-memory",
                    rival="rank-k",
                    judge="prompt_tokens",
                    by=1.1,
                    reason=TENTH,
                    where=talk,
                ),
            ),
            exploratory(
                "One beta is another method with another embedder: chains of the whole pool are more frequent where all "
                "cosines are high.",
                CARD,
                between(
                    "full_chains",
                    arm="chain-of-memory",
                    where_a={"world": "locomo", "embedder": "offset"},
                    where_b={"world": "locomo", "embedder": "tfidf"},
                    margin=0.5,
                    reason="half of all chains",
                    units=("seed",),
                ),
            ),
        ]
    claims += [
        Claim(
            "7.5 to 10.4 % more right answers than complex memories, with 2.7 % of their tokens and 6.0 % of their time.",
            source=f"{PAPER}, abstract",
            untested="needs memories that a large language model builds, and one that reads and judges",
        ),
        Claim(
            "A reader answers better from chains than from the same turns as a ranking.",
            source=f"{PAPER}, LongMemEval-S",
            untested="needs a reader that answers well; a small one is looked at by the study chain-of-memory-reader",
        ),
    ]
    return Study(
        seeds=10,  # of the made-up stores, and of the turns that the embedders are fitted on; 1000 was looked at
        budget="prompt_tokens",
        dial="allowed_tokens",
        scale="Evidence in the print; no model reads it. Stores of 142 made-up turns; LoCoMo's ten conversations with "
        "vectors of word counts, not of a neural embedder. Tokens are words.",
        prepare=prepare,
        arms=[
            Arm("chain-of-memory", kind="method", by="mean"),
            Arm("chain-published", kind="method", by="published"),
            Arm("chain-adaptive", kind="method", by="adaptive"),
            Arm("chain-last", kind="method", by="last"),
            Arm("chain-query-gate", kind="baseline", by="query"),
            Arm("chain-context-gate", kind="baseline", by="context"),
            Arm("chain-weighted-gate", kind="baseline", by="weighted"),
            Arm("rank-k", kind="baseline", by="rank"),
            Arm("same-tokens", kind="baseline", by="same-tokens", against="mean"),
            Arm("same-tokens-published", kind="baseline", by="same-tokens", against="published"),
            Arm("union-ranked", kind="control", by="union-ranked"),
            Arm("union-by-time", kind="control", by="union-by-time"),
            Arm("published-shuffled", kind="control", by="shuffled"),
            Arm("rank-repeated", kind="control", by="rank-repeated"),
            Arm("union-size", kind="control", by="union-size"),
            Arm("chain-no-headers", kind="control", by="bare"),
            Arm("full-text", kind="reference", by="everything"),
        ],
        outcomes=[
            Outcome("evidence_recall", better="higher", description="questions all of whose evidence is printed"),
            Outcome(
                "gain", better="higher", description="evidence recall above that of as many printed tokens by rank"
            ),
            Outcome("printed_tokens", better="lower", unit="tokens", description="of a question's print, headers too"),
            Outcome("unique_turns", better="lower", unit="turns", description="in a question's print"),
            Outcome("single_chains", better="lower", description="chains that stop at their anchor"),
            Outcome(
                "full_chains", better="higher", description="chains that take the whole pool, so that nothing is chosen"
            ),
        ],
        claims=claims,
        run=arrange,
    )


def prepare(preparation: Preparation) -> None:
    """Fit the seed's embedders on LoCoMo, and rank its turns for every question."""
    if preparation.options["locomo"]:
        from equipoise.agents import chain_world

        preparation.folder.mkdir(parents=True, exist_ok=True)
        chain_world.prepare_locomo(preparation.folder, preparation.generator)


def arrange(run: Run) -> None:
    """One arm and seed: every store, every embedder, every allowance of tokens."""
    from equipoise.agents import chain_world

    trials, with_locomo = run.options["trials"], run.options["locomo"]
    if run.settings["by"] == "everything":
        chain_world.measure_everything(run, trials=trials, with_locomo=with_locomo)
        return
    chain_world.measure(
        run,
        arm=run.settings["by"],
        against=run.settings.get("against", ""),
        trials=trials,
        with_locomo=with_locomo,
    )
