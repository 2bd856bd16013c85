"""LifeDialBench on the scales: does anything beat raw text and a search, and what does asking too late change?

Made-up lifelogs whose facts are replaced, or told late. Every arm is a memory that hears the same sessions and is asked the
same questions online, as of the question's moment, and offline: three conditions of one arm. The reader is exact, and so is
the extractor of the memories that are built: what they lose here they lose by what they keep and how it is found, not by a
model's mistakes. Memories that a model builds are untested.

Arms read as many items, or as many printed tokens; claims on what is kept are at equal tokens.
"""

from typing import Annotated, Any

from pydantic import Field

from equipoise.study import Arm, Claim, Outcome, Run, Study, better, between, both, cheaper, not_worse, study
from equipoise.study.declare import Kind

PAPER = "arXiv:2604.11182"
CARD = "card, known in advance"
OURS = "control of ours"
POINTS = "two questions in a hundred are the least for which anybody would take one memory for another"
TENTH = "a third of the words is lost at each step: a loss of a tenth is far less than in proportion"
RAW = "rag-sessions"
K, TOKENS = "k", "100 tokens"


@study("lifedialbench", paper=PAPER, trades="what is written and read for what is remembered")
def lifedialbench(days: Annotated[int, Field(ge=10, le=1000)] = 120) -> Study:
    """Raw text and a search against memories that are built, thinned, overwritten or absent, asked while the stream runs.

    days: of each lifelog, with four events each.
    """

    def arm(name: str, kind: Kind = "baseline", late: bool = False, memory: str = "", **options: Any) -> Arm:
        return Arm(name, kind=kind, memory=memory or name, late=late, options=options)

    def at(
        equal: str = TOKENS, protocol: str = "online", world: str = "updates", hidden: float = 0.0
    ) -> dict[str, Any]:
        return {"at": {"hidden": hidden}, "where": {"world": world, "equal": equal, "protocol": protocol}}

    def ahead(arm: str, rival: str, equal: str = TOKENS, margin: float = 0.02, reason: str = POINTS) -> Any:
        return better("open", arm=arm, rival=rival, margin=margin, reason=reason, units=("seed",), **at(equal))

    def gap(arm: str, more: str, less: str, world: str = "updates", hidden: float = 0.0) -> Any:
        places = [at(K, protocol, world, hidden) for protocol in (more, less)]
        return between(
            "open",
            arm=arm,
            where_a=places[0]["where"],
            where_b=places[1]["where"],
            at=places[0]["at"],
            units=("seed",),
        )

    def exploratory(text: str, source: str, test: Any) -> Claim:
        return Claim(text, source=source, test=test, primary=False)

    return Study(
        seeds=10,  # from 0; seed 1000 was looked at while the world was built
        budget="read_tokens",
        dial="hidden",
        scale="Made-up lifelogs, of 120 days unless asked otherwise, four events a day; a reader and an extractor that make "
        "no mistakes; tokens are words.",
        arms=[
            arm(RAW, "method", late=True),
            arm("bm25"),
            arm("facts", late=True),
            arm("notes"),
            arm("session-notes"),
            arm("recency"),
            arm("full"),
            arm("thinned-62", "control", memory="thinned", share=0.62),
            arm("thinned-35", "control", memory="thinned", share=0.35),
            arm("facts-missing", "control", memory="facts", missed=0.2),
            arm("empty", "control", late=True),
            arm("oracle", "reference"),
        ],
        outcomes=[
            Outcome("open", better="higher", chance=0.0, description="answers in words that are right"),
            Outcome("choice", better="higher", chance=0.25, description="right options of four"),
            Outcome("recall", better="higher", description="evidence that was printed"),
            Outcome("printed_tokens", better="lower", unit="words", description="read for a question"),
            Outcome("modification", better="lower", description="open online less open as of the question's moment"),
            Outcome("contamination", better="lower", description="open as of the question's moment less open offline"),
            Outcome(
                "later_auroc",
                better="higher",
                chance=0.5,
                description="share of later items against right offline; below 0.5: they go with wrong answers",
            ),
            Outcome(
                "later_auroc_within", better="higher", chance=0.5, description="the same, within quarters of the days"
            ),
            Outcome("open_by_age", better="higher", description="open online, by days since the evidence"),
            Outcome("changed", better="lower", description="asked facts that are replaced before the end"),
            Outcome("restated", better="higher", description="asked facts that are told again"),
        ],
        claims=[
            Claim(
                "Memories that are built do not come up to raw text and a search, where all read as many tokens.",
                source=f"{PAPER}, abstract and table 3; there with equal k",
                test=both(*(ahead(RAW, rival) for rival in ("facts", "notes", "session-notes"))),
            ),
            Claim(
                "Compression hurts in proportion to what is left out.",
                source=f"{PAPER}, table 3: 100, 62 and 35 % of the tokens are kept",
                test=both(
                    ahead(RAW, "thinned-62", margin=0.1, reason=TENTH),
                    ahead("thinned-62", "thinned-35", margin=0.1, reason=TENTH),
                ),
            ),
            Claim(
                "Offline scores are too high: asked at the end, raw text and a search answer more than online.",
                source=f"{PAPER}, abstract; its own tables 3 and 8 have the opposite sign",
                test=gap(RAW, "offline", "online"),
            ),
            exploratory(
                "Where facts are told late, the sign is that of the paper's text.",
                CARD,
                gap(RAW, "offline", "online", "late", 1.0),
            ),
            exploratory(
                "What raw text loses offline is found too late, not overwritten.",
                OURS,
                gap(RAW, "asof", "offline"),
            ),
            exploratory(
                "What overwritten facts lose is lost as of the question's moment.",
                f"{PAPER}, irreversible modification",
                gap("facts", "online", "asof"),
            ),
            exploratory(
                "With as many items, not tokens, raw text is ahead of facts.",
                f"{PAPER}, table 3",
                ahead(RAW, "facts", K),
            ),
            exploratory(
                "Raw text is ahead of facts of which a fifth was not extracted.", OURS, ahead(RAW, "facts-missing")
            ),
            exploratory("A search beats the newest sessions.", OURS, ahead(RAW, "recency")),
            exploratory(
                "Vectors are no worse than words.",
                OURS,
                not_worse("open", arm=RAW, rival="bm25", margin=0.02, reason=POINTS, units=("seed",), **at(TOKENS)),
            ),
            exploratory("All of the text answers more than a search in it.", OURS, ahead("full", RAW, K)),
            exploratory(
                "With as many items, facts are read in less than half the tokens: equal k is unequal budget.",
                CARD,
                cheaper(
                    "read_tokens",
                    arm="facts",
                    rival=RAW,
                    by=2.0,
                    phase="online, updates k",
                    reason="half the tokens is a difference that a bill shows",
                ),
            ),
            Claim(
                "A-Mem, MemOS and Mem0, built by chat models, do not beat retrieval from raw text.",
                source=f"{PAPER}, table 3",
                untested="needs chat models that extract and decide for thousands of sessions; `equipoise memory compare` "
                "measures it on your own",
            ),
            Claim(
                "The scores of EgoMem and LifeMem, and their fall by quarter.",
                source=f"{PAPER}, tables 3 and 8",
                untested="needs the benchmark's two files, whose content is not public",
            ),
        ],
        run=ask,
    )


def ask(run: Run) -> None:
    """One arm and seed: every world, protocol and budget."""
    from equipoise.agents import lifedial_world

    settings = run.settings
    lifedial_world.measure(
        run, memory=settings["memory"], days=run.options["days"], late=settings["late"], options=settings["options"]
    )
