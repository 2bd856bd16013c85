"""Chain-of-Memory's study: prints are those of the method, equal tokens are equal, claims are of what is measured."""

import itertools
import json
import os
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.agents import chain_reading
from equipoise.agents import chain_world as world
from equipoise.agents.chain_of_memory import organize
from equipoise.agents.memory import MemoryItem, words
from equipoise.study import registry
from study_recorder import StudyRecorder

LOCOMO = Path(os.environ.get("EQUIPOISE_DATA", "nowhere")) / "locomo"
ARMS = ("mean", "published", "adaptive", "last", "query", "context", "weighted", "bare")


class Recorder(StudyRecorder):
    seed = 1000

    def items(self, outcome, ids, scores, *, at=None, where=None, clusters=None):
        assert len(clusters) == len(ids)
        super().items(outcome, ids, scores, at=at, where=where)

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at={"allowed_tokens": at["allowed_tokens"]}, where=where)


def ran(arm, folder, *, prepared=None, **options):
    study = registry.load("chain-of-memory").build(**{"trials": 3, "locomo": False} | options)
    run = Recorder(folder / arm, study=study, arm=arm, prepared=prepared)
    study.run(run)
    return study, run


def value(run, outcome, allowed, where):
    return run.measured[f"{outcome} {json.dumps({'allowed_tokens': allowed})} {json.dumps(where)}"]


def case(tokens, evidence, k=2):
    size = len(tokens)
    vectors = np.eye(size)[:k] + 0.2
    return world.Case(
        "q", "", np.asarray(tokens), np.arange(size), np.linspace(0.9, 0.5, k), vectors, frozenset(evidence),
        lambda places: vectors[list(places)].sum(axis=0), 0.0, 5, sum(tokens),
    )  # fmt: skip


def test_as_many_tokens_by_rank_are_as_many_on_average():
    three = case([10, 4, 8], {1})
    assert [world.by_rank(three, tokens) for tokens in (9, 10, 11, 13, 14, 99)] == [0, 0, 0.25, 0.75, 1, 1]
    assert world.by_rank(case([10, 4, 8], {0, 2}), 18) == 0.5 and world.by_rank(case([10, 4, 8], {0}), 5) == 0.5
    assert world.by_rank(case([10, 4], {-1, 0}), 99) == 0.0 and world.by_rank(case([10, 4], {0}), 10) == 1.0
    # What ends with a turn of the ranking is the ranking itself: no gain and no loss.
    hop = world.two_hop(0.6, 0, 1000, 0)
    ranked = world.arrange("rank", hop, np.random.default_rng(0))
    for allowed in world.ALLOWED:
        shown = world.printed(ranked, hop.tokens, allowed)
        assert world.by_rank(hop, shown.tokens) == shown.holds(hop.evidence)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_prints_what_the_method_prints(arm):
    """Blocks and tokens of the study, which counts numbers, beside texts that are written, within every allowance."""
    own = {
        "published": {"context": "concatenated", "negative": "keep", "repeat": True},
        "adaptive": {"beta": 0.0},
        "last": {"context": "last"},
        "bare": {"headers": False},
    }
    own |= {gate: {"gate": gate} for gate in ("query", "context", "weighted")}
    for number in range(3):
        made = world.two_hop(0.6, world.CHATTER, 1000, number)
        start = datetime(2024, 5, 7)
        items = [
            MemoryItem(str(place), f"t{place}" + " w" * (int(tokens) - 1), start + timedelta(minutes=int(time)))
            for place, (tokens, time) in enumerate(zip(made.tokens[: world.K], made.times, strict=False))
        ]
        query = np.linalg.lstsq(made.vectors, made.scores, rcond=None)[0]

        def joined(texts, made=made):
            return [made.embed(tuple(int(part.split()[0][1:]) for part in text.split("\n\n"))) for text in texts]

        settings = {**own.get(arm, {}), "embedder": joined if arm == "published" else None}
        settings |= {"floor": made.floor} if arm == "adaptive" else {}
        shown = world.arrange(arm, made, np.random.default_rng(0))
        for allowed in (30, 120, 1920):
            written = organize(items, made.vectors, query, budget=allowed, **settings)
            counted = world.printed(shown, made.tokens, allowed)
            assert [int(item.id) for item in written.items] == list(counted.places)
            assert written.read_tokens == counted.tokens
        assert (shown.contexts, shown.embedded) == (
            written.amounts["embedding_calls"],
            written.amounts["embedded_tokens"],
        )


def test_controls_keep_what_they_are_said_to_keep():
    draw = np.random.default_rng(0)
    vectors = np.eye(5)[np.arange(20) % 5] + 0.05 * draw.standard_normal((20, 5))  # chains of one group of four each
    made = case([9] * 20, {0})
    made = replace(made, vectors=vectors, scores=np.linspace(0.9, 0.5, 20), times=draw.permutation(20))
    made = replace(made, embed=lambda places: vectors[list(places)].sum(axis=0))

    def places(arm):
        blocks = world.arrange(arm, made, np.random.default_rng(3)).blocks
        return [place for block in blocks for place in block]

    chains, published = places("mean"), places("published")
    assert sorted(chains) == [place for place in range(20) if place % 5 < 3] and len(published) == 12
    assert places("bare") == chains != places("union-ranked") == sorted(chains)
    assert places("union-by-time") == sorted(chains, key=lambda place: made.times[place]) != sorted(chains)
    assert places("union-size") == list(range(len(chains)))
    assert sorted(places("shuffled")) == sorted(published) and places("shuffled") != published
    made = world.two_hop(0.6, 0, 1000, 1)  # whose chains share turns
    assert sorted(places("shuffled")) == sorted(places("published")) != sorted(set(places("published")))
    assert places("rank-repeated") == [*range(world.K)] * 3 and places("rank") == [*range(world.K)]


def test_stores_are_what_they_are_said_to_be():
    for how in world.HOPS:
        cases = [world.two_hop(how["rho"], how["chatter"], 1000, number) for number in range(40)]
        assert all(np.linalg.norm(made.vectors, axis=1) == pytest.approx(1.0) for made in cases)
        assert all((np.diff(made.scores) <= 0).all() and len(made.tokens) == world.RANKED for made in cases)
        there = np.mean([made.evidence <= set(range(world.K)) for made in cases])
        assert (there > 0.8) == (how["rho"] == 0.6)
    one, again, other = (world.two_hop(0.6, 0, seed, 5) for seed in (1, 1, 2))
    assert (one.vectors == again.vectors).all() and one.evidence == again.evidence
    assert not np.allclose(one.scores, other.scores)


def test_every_claim_is_of_something_that_is_measured(tmp_path):
    study, run = ran("chain-of-memory", tmp_path)
    rest = {arm.name: ran(arm.name, tmp_path)[1] for arm in study.arms if arm.name != "chain-of-memory"}
    runs = {"chain-of-memory": run, **rest}
    for claim in study.claims:
        for arm in claim.references().arms:
            for outcome in claim.references().outcomes:
                assert any(key.startswith(f"{outcome} ") for key in runs[arm].measured), (claim.text, arm)
            assert all(cost in (*runs[arm].spent, "seconds") for cost in claim.references().costs)
    clean = {"world": "two-hop", "rho": 0.6, "chatter": 0}
    for allowed in world.ALLOWED:  # equal tokens, question by question
        assert value(runs["same-tokens"], "printed_tokens", allowed, clean) == value(
            run, "printed_tokens", allowed, clean
        )
        gain = value(run, "evidence_recall", allowed, clean) - value(
            runs["same-tokens"], "evidence_recall", allowed, clean
        )
        assert value(run, "gain", allowed, clean) == pytest.approx(gain)
        assert value(runs["rank-k"], "gain", allowed, clean) == value(runs["same-tokens"], "gain", allowed, clean) == 0
        assert value(run, "printed_tokens", allowed, clean) <= allowed
    full = [key for key in runs["full-text"].measured if key.startswith("evidence_recall")]
    assert len(full) == 3 and all(runs["full-text"].measured[key] == 1.0 for key in full)
    assert value(run, "evidence_recall", 1920, clean) == value(runs["union-ranked"], "evidence_recall", 1920, clean)
    assert runs["chain-published"].spent["calls"] > run.spent["calls"] == 9
    again = ran("published-shuffled", tmp_path / "again" if not (tmp_path / "again").mkdir() else tmp_path)[1]
    assert again.measured == runs["published-shuffled"].measured


@pytest.mark.parametrize(("name", "options", "prepares"), [
    ("chain-of-memory", {"locomo": True}, True), ("chain-of-memory", {"locomo": False}, False),
    ("chain-of-memory-reader", {}, True),
])  # fmt: skip
def test_what_needs_locomo_prepares_it(name, options, prepares, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(world, "prepare_locomo", lambda *given: asked.append(given))
    study = registry.load(name).build(**options)
    for _ in range(2):  # also where the folder is there
        preparation = SimpleNamespace(options=study.options, folder=tmp_path / "deep" / "er", generator="generator")
        study.prepare(preparation)
        assert preparation.folder.is_dir() == prepares
    assert asked == [(tmp_path / "deep" / "er", "generator")] * 2 * prepares


def it_is_read_as_the_arms_print(prepared):
    """Twenty questions, the same for all arms; prints within what is allowed; answers scored as LoCoMo's are."""
    study = registry.load("chain-of-memory-reader").build()
    asked, recall = {}, {}

    def told(reader, prompts):
        asked[run.arm] = prompts
        return [f" {gold} \nand more" for gold in golds]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_reading, "answers", told)
        for arm in ("chain-of-memory", "same-tokens", "published-shuffled", "rank-k", "oracle", "nothing"):
            run = Recorder(prepared / f"read {arm}", study=study, arm=arm, prepared=prepared)
            own = run.settings["by"], run.settings.get("against", "")
            golds = [question.gold[0] for _, question, *_ in chain_reading.reading(run, arm=own[0], against=own[1])]
            study.run(run)
            recall[arm] = value(run, "evidence_recall", 120, {})
            assert value(run, "answer_f1", 120, {}) == pytest.approx(1.0) and run.spent["calls"] == 20
    prints = {
        arm: [text.split("below.\n\n")[1].split("\n\nQuestion: ")[0] for text in texts] for arm, texts in asked.items()
    }
    ends = {arm: tuple(text.split("Question: ")[1] for text in texts) for arm, texts in asked.items()}
    assert len(set(ends.values())) == 1 and len(set(ends["oracle"])) == 20
    lengths = {arm: np.array([words(text) for text in texts]) for arm, texts in prints.items()}
    assert (lengths["same-tokens"] <= lengths["chain-of-memory"]).all() and (lengths["chain-of-memory"] <= 120).all()
    assert all("=== Evidence Chain 1 ===" in text for text in prints["chain-of-memory"])
    assert not any("===" in text for arm in ("same-tokens", "published-shuffled", "rank-k") for text in prints[arm])
    assert lengths["rank-k"].mean() > 80 and lengths["oracle"].min() > 0 == lengths["nothing"].max()
    assert recall["oracle"] == 1 > recall["rank-k"] > recall["nothing"] == 0


@pytest.mark.skipif(not LOCOMO.is_dir(), reason="needs EQUIPOISE_DATA with the folder locomo")
@pytest.mark.slow
def test_locomo_is_read_ranked_and_no_word_of_it_is_stored(tmp_path):
    world.prepare_locomo(tmp_path, np.random.default_rng(0))
    state = world.load_state(tmp_path / world.WORLD)
    assert len(state["questions"]) == len(set(state["questions"])) == 1536 and len(set(state["clusters"])) == 10
    assert len(state["tokens"]) == 5882 and b"Caroline" not in (tmp_path / world.WORLD).read_bytes()
    for embedder in world.EMBEDDERS:
        some = list(itertools.islice(world.locomo(state, embedder), 60))
        for made in some:
            assert len(made.vectors) == len(made.scores) <= world.K and (np.diff(made.scores) <= 1e-12).all()
        held = [made.evidence <= set(range(world.K)) for made in some]
        assert 0.2 < np.mean(held) < 0.9
        joined, pair = some[0].embed((0, 0)), some[0].vectors[0]
        assert joined @ pair == pytest.approx(np.linalg.norm(joined) * np.linalg.norm(pair))  # of one text twice
    it_is_read_as_the_arms_print(tmp_path)
    run = ran("chain-of-memory", tmp_path, prepared=tmp_path, locomo=True)[1]
    lengths = {
        embedder: value(run, "full_chains", 1920, {"world": "locomo", "embedder": embedder})
        for embedder in world.EMBEDDERS
    }
    assert lengths["tfidf"] < 0.1 < lengths["lsa"] < 0.7 < 0.95 < lengths["offset"]  # one beta, three methods
