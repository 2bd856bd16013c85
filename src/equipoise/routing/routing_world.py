"""The world of RouterXBench's study: prompts of a few domains, whether a model here answers them, and what it holds of each.

    sums, differences    of numbers of one to three digits              sorting   two to four numbers, the smallest first
    letters              how often a letter stands in a word            choice    which of four words is of a kind
    products             held out: no router learns from them           big-math  problems with another model's solve rates

The prompts are the same for every seed: half of a domain to learn from, half to test on. The model answers them greedily
once; the answers, their verdicts by `data.verify`, its states of the prompts and all scores that learn nothing are kept in
the cache, where the next seed finds them. A seed draws the prompts that its routers learn from, and no others: tested are
the same prompts throughout. Domains of which the model solves less than a fifth or more than four fifths do not enter.

Of big-math the label is not the model's own: a problem counts as solved from a rate of 0.5 of Llama-3.1-8B on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import cache_folder, lock, read_regular, seal, sha256_file, unseal, write_atomic
from equipoise.core.options import closed
from equipoise.core.rows import Rows
from equipoise.core.scores import auroc
from equipoise.data.public import folder as public_folder
from equipoise.data.records import read_rows
from equipoise.data.spy import word_pairs
from equipoise.data.verify import Kind, verify
from equipoise.language.features import VALUES, weights_digest
from equipoise.language.generate import generate
from equipoise.language.model import load
from equipoise.routing import prompt_states
from equipoise.routing.baselines import Random, next_token_scores, semantic_agreement, verbalised
from equipoise.routing.logit_scores import LOGIT_SCORES
from equipoise.routing.result import RANDOM
from equipoise.routing.routerxbench import STEPS, curve, hcr, lpm, mpm
from equipoise.routing.scoring import CLASSIFIERS, FEATURES, PROBES, directions, given_scores, rows_like

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Array = NDArray[np.float64]
By = Literal["probe", "vectors", "given", "best-logit", "random"]

MAIN = ("sums", "differences", "sorting", "letters", "choice")
HELD_OUT, PROXY = "products", "big-math"
ASKED = ("verbalised", "semantic-entropy")
SOLVABLE = (0.2, 0.8)
SHARE = 0.75  # of a domain's training half, what a seed draws
CALLS = 30  # hundredths of the prompts that go to the strong model where a cost is read
LONGEST = 200  # characters of a problem of big-math
POOL = "pool.json"
AT_ONCE = 32  # prompts that are answered together and stored as one row
LOOK_AGAIN = 2.0  # seconds
_VERSION = 1  # raise it when what is made below changes: older pools are then left alone
_PATIENCE = 2000  # draws without a new prompt
_MOST = {"choice": 580, "differences": 400}  # there are hardly more; of few digits, which alone a small model can do
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Question:
    """gold: what the answer is compared with. solved: of the proxy, whose label is known; of the others it is made here."""

    id: str
    domain: str
    prompt: str
    gold: str = ""
    solved: bool = False


# --- questions ------------------------------------------------------------------------------------------------------------


def questions(domain: str, count: int) -> list[Question]:
    """So many of a generated domain, all different, the same whenever they are asked for; more begin with the fewer.

    Raises BadInput for a domain that is none, and for more than it has.
    """
    if domain not in _DOMAINS:
        raise BadInput(f"no domain of generated prompts is called {domain!r}: it is one of {', '.join(_DOMAINS)}.")
    draw = np.random.default_rng(np.random.SeedSequence([20, *domain.encode()]))
    made = _DOMAINS[domain]
    found: dict[str, tuple[str, str]] = {}
    since = 0
    while len(found) < count:
        prompt, gold = made.draw(draw)
        asked = prompt.split(":")[0]  # without the words on offer: no clue is learnt from and tested, too
        since = since + 1 if asked in found else 0
        found.setdefault(asked, (made.shown + prompt, gold))
        if since > _PATIENCE:
            raise BadInput(
                f"the domain {domain!r} has {len(found)} prompts and hardly more: ask for fewer than {count}."
            )
    return [Question(f"{domain}-{place}", domain, *each) for place, each in enumerate(found.values())]


def big_math(count: int) -> list[Question]:
    """So many problems of Big-Math of at most LONGEST characters, from the folder `big-math` that EQUIPOISE_DATA holds.

    Raises BadInput where that is not there, or has fewer.
    """
    if not count:
        return []
    try:
        place = public_folder(PROXY)
    except BadInput as error:
        raise BadInput(f"{error} Or leave the proxy out: --set proxy=0.") from None
    rows = [row for path in sorted(place.glob("*.jsonl*")) for _, _, row in read_rows(path)]
    short = [row for row in rows if len(row["problem"]) <= LONGEST]
    if len(short) < count:
        raise BadInput(
            f"{place} has {len(short)} problems of at most {LONGEST} characters: ask for no more than these."
        )
    order = np.random.default_rng(19).permutation(len(short))[:count]
    return [
        Question(f"{PROXY}-{row['id']}", PROXY, row["problem"], solved=row["solve_rate"] >= 0.5)
        for row in (short[place] for place in order)
    ]


# How often a number has one, two, three digits: chosen so that a model of 135 M parameters solves about half.
_SUM, _DIFFERENCE, _FACTOR = (0.4, 0.4, 0.2), (0.9, 0.1), (0.4, 0.5, 0.1)


def _number(draw: np.random.Generator, chances: Sequence[float]) -> int:
    """With so many digits as often as said; 0 is not among them."""
    size = int(draw.choice(len(chances), p=chances))
    return int(draw.integers(10**size, 10 ** (size + 1)))


def _sum(draw: np.random.Generator) -> tuple[str, str]:
    a, b = _number(draw, _SUM), _number(draw, _SUM)
    return f"{a} + {b} =", str(a + b)


def _difference(draw: np.random.Generator) -> tuple[str, str]:
    b, a = sorted((_number(draw, _DIFFERENCE), _number(draw, _DIFFERENCE)))
    return f"{a} - {b} =", str(a - b)


def _product(draw: np.random.Generator) -> tuple[str, str]:
    a, b = _number(draw, _FACTOR), int(draw.integers(2, 10))
    return f"{a} * {b} =", str(a * b)


def _sorting(draw: np.random.Generator) -> tuple[str, str]:
    numbers = draw.choice(np.arange(1, 100), int(draw.choice([2, 2, 2, 2, 3, 4])), replace=False).tolist()
    return f"{_listed(numbers)} sorted:", _listed(sorted(numbers))


def _letters(draw: np.random.Generator) -> tuple[str, str]:
    """As often of a letter that a word has once as of one that it has more often."""
    wanted = int(draw.integers(2))
    word = letter = ""
    while not letter:
        word = str(draw.choice(_words()))
        found = sorted({each for each in word if (word.count(each) > 1) == wanted})
        letter = str(draw.choice(found)) if found else ""
    return f"letter {letter} in {word}:", str(word.count(letter))


def _choice(draw: np.random.Generator) -> tuple[str, str]:
    pairs = word_pairs()
    pair = pairs[int(draw.integers(len(pairs)))]
    word, clues = ((pair.first, pair.of_first), (pair.second, pair.of_second))[int(draw.integers(2))]
    others = [each for each in _words() if each not in (pair.first, pair.second)]
    offered = draw.permutation([word, *draw.choice(others, 3, replace=False)]).tolist()
    return f"Which of these {draw.choice(clues)}: {', '.join(offered[:3])} or {offered[3]}? Answer:", word


@cache
def _words() -> tuple[str, ...]:
    """Single words of `data.spy`, in the order of the alphabet."""
    return tuple(sorted({word for pair in word_pairs() for word in (pair.first, pair.second) if word.isalpha()}))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass(frozen=True)
class _Domain:
    """shown: solved questions that go before each, so that a small model answers in their form. tokens: of an answer."""

    draw: Callable[[np.random.Generator], tuple[str, str]]
    shown: str
    kind: Kind
    tokens: int


_DOMAINS: Mapping[str, _Domain] = {
    "sums": _Domain(_sum, "3 + 4 = 7\n25 + 13 = 38\n", "number", 6),
    "differences": _Domain(_difference, "7 - 4 = 3\n38 - 13 = 25\n", "number", 6),
    "sorting": _Domain(
        _sorting, "9, 2 sorted: 2, 9\n15, 40, 17 sorted: 15, 17, 40\n8, 12 sorted: 8, 12\n", "exact", 18
    ),
    "letters": _Domain(_letters, "letter a in banana: 3\nletter t in cat: 1\n", "number", 4),
    "choice": _Domain(
        _choice, "Which of these is made by bees: stone, honey, rope or lamp? Answer: honey\n", "exact", 6
    ),
    HELD_OUT: _Domain(_product, "3 * 4 = 12\n12 * 3 = 36\n", "number", 6),
}


def right(domain: str, answer: str, gold: str) -> bool:
    """Whether the first line of an answer is the gold one, by `data.verify`."""
    line = answer.split("\n")[0]
    if domain == "sorting":
        line = _listed([int(each) for each in _NUMBER.findall(line)])
    return bool(line.strip()) and verify(_DOMAINS[domain].kind, line, gold).value == 1


# --- what is made once ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RoutingWorld:
    """n prompts: ids, domains; learnt [n], whether a router may learn from it; solved [n] of 0 and 1; tokens [n], how many.

    scores: [n] by name, nan where a prompt has none. states: [n, L, d]. answers: the model's own, "" of the proxy.
    generated: tokens that a score had the model write, by name.
    """

    ids: tuple[str, ...]
    domains: NDArray[np.str_]
    learnt: NDArray[np.bool_]
    solved: Array
    tokens: Array
    scores: Mapping[str, Array]
    states: NDArray[Any]
    answers: tuple[str, ...] = ()
    generated: Mapping[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Into a folder that is there; the states as they are in the file of `language.features`."""
        np.save(folder / VALUES, self.states)
        self.note(folder)

    def note(self, folder: Path) -> None:
        """All but the states, into a folder that has these already."""
        about = {
            "ids": list(self.ids),
            "domains": self.domains.tolist(),
            "learnt": self.learnt.tolist(),
            "solved": self.solved.tolist(),
            "tokens": self.tokens.tolist(),
            "scores": {
                name: [None if math.isnan(x) else x for x in each.tolist()] for name, each in self.scores.items()
            },
            "answers": list(self.answers),
            "generated": dict(self.generated),
            "sha256": sha256_file(folder / VALUES),
        }
        write_atomic(folder / POOL, seal(about))

    @classmethod
    def open(cls, folder: Path) -> RoutingWorld:
        """What `save` wrote; the states as a map of the file. Raises BadInput for what was altered since."""
        try:
            about, _ = unseal(read_regular(folder / POOL))
            if sha256_file(folder / VALUES) != about["sha256"]:
                raise ValueError("the states were altered since they were written")
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(
                f"{folder} holds no whole pool of prompts ({error}): remove it, and it is made anew."
            ) from None
        return cls(
            ids=tuple(about["ids"]),
            domains=np.array(about["domains"]),
            learnt=np.array(about["learnt"], bool),
            solved=np.array(about["solved"], float),
            tokens=np.array(about["tokens"], float),
            scores={name: np.array(each, float) for name, each in about["scores"].items()},  # None becomes nan
            states=np.load(folder / VALUES, mmap_mode="r"),
            answers=tuple(about["answers"]),
            generated=about["generated"],
        )

    def rates(self) -> dict[str, float]:
        """The share solved of the training half of each domain that has one."""
        found = {}
        for domain in dict.fromkeys(self.domains.tolist()):
            half = self.solved[(self.domains == domain) & self.learnt]
            if len(half):
                found[domain] = float(half.mean())
        return found

    def entered(self) -> tuple[str, ...]:
        """The main domains of which the model solves neither too little nor too much. Raises WorkFailed where none is."""
        rates = self.rates()
        found = tuple(each for each in MAIN if each in rates and SOLVABLE[0] <= rates[each] <= SOLVABLE[1])
        if not found:
            told = ", ".join(f"{rate:.2f} of {domain}" for domain, rate in rates.items())
            raise WorkFailed(
                f"The model solves {told}: no domain lies in {list(SOLVABLE)}, so there is nothing to route."
            )
        return found

    def drawn(self, domains: Sequence[str], seed: int) -> NDArray[np.intp]:
        """Places of the prompts that a seed's routers learn from: SHARE of the training half of each domain."""
        found = []
        for domain in domains:
            half = np.flatnonzero((self.domains == domain) & self.learnt)
            draw = np.random.default_rng(np.random.SeedSequence([seed, 17, *domain.encode()]))
            found.append(np.sort(draw.permutation(half)[: max(round(SHARE * len(half)), 1)]))
        return np.concatenate(found)

    def tested(self, domains: Sequence[str]) -> NDArray[np.intp]:
        """Places of the prompts of these domains that no router learns from."""
        return np.flatnonzero(np.isin(self.domains, domains) & ~self.learnt)


def pool(language_model: LanguageModel, asked: Sequence[Question], folder: Path, *, many: int) -> RoutingWorld:
    """Everything that the seeds share, made in `folder`; what is there already is kept. asked: of each domain together.

    The first half of each domain is to learn from, but of HELD_OUT; many: prompts of the tested half of each main domain
    whose model is asked how sure it is, and sampled.
    """
    raw = replace(language_model, chat_template="none")
    rows = Rows(folder / "made.jsonl")
    known = {row["name"]: row["made"] for row in rows}

    def once(name: str, make: Callable[[], Any]) -> Any:
        if name not in known:
            known[name] = make()
            rows.add({"name": name, "made": known[name]})
        return known[name]

    prompts = [each.prompt for each in asked]
    domains = np.array([each.domain for each in asked])
    encoded = prompt_states.encode(language_model, prompts, "raw")
    learnt = np.zeros(len(asked), bool)
    answers, solved = [""] * len(asked), np.array([float(each.solved) for each in asked])
    scores: dict[str, Array] = {}
    generated: dict[str, int] = dict.fromkeys(ASKED, 0)

    def put(places: Sequence[int], made: Mapping[str, Sequence[float]]) -> None:
        for name, values in made.items():
            scores.setdefault(name, np.full(len(asked), math.nan))[places] = values

    states = prompt_states.extract(language_model, prompts, "raw", into=folder / FEATURES, dtype="float16").values
    for domain in dict.fromkeys(domains.tolist()):
        places = np.flatnonzero(domains == domain)
        for first in range(0, len(places) if domain in _DOMAINS else 0, AT_ONCE):
            some = places[first : first + AT_ONCE].tolist()
            written = once(
                f"answers {asked[some[0]].id}",
                partial(
                    generate,
                    raw,
                    [prompts[place] for place in some],
                    max_new_tokens=_DOMAINS[domain].tokens,
                    batch_size=AT_ONCE,
                    stop=["\n"],
                ),
            )
            for place, text in zip(some, written, strict=True):
                answers[place] = text
                solved[place] = float(right(domain, text, asked[place].gold))
        half = 0 if domain == HELD_OUT else len(places) // 2
        learnt[places[:half]] = True
        learn, test = places[:half].tolist(), places[half:].tolist()
        if learn:
            put(learn, once(f"logits {domain}", partial(_logits, raw, [encoded[place] for place in learn])))
        put(test, once(f"scores {domain}", partial(_given, raw, [encoded[place] for place in test], states[test])))
        for first in range(0, min(many, len(test)) if domain in MAIN else 0, AT_ONCE):
            some = test[: min(many, len(test))][first : first + AT_ONCE]
            said = once(
                f"asked {asked[some[0]].id}",
                partial(_asked, language_model, [prompts[place] for place in some], _DOMAINS[domain].tokens, some[0]),
            )
            put(some, said["scores"])
            for name in ASKED:
                generated[name] += said["generated"][name]
    return RoutingWorld(
        ids=tuple(each.id for each in asked),
        domains=domains,
        learnt=learnt,
        solved=solved,
        tokens=np.array([len(ids) for ids in encoded], float),
        scores=scores,
        states=states,
        answers=tuple(answers),
        generated=generated,
    )


def _logits(language_model: LanguageModel, encoded: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in next_token_scores(language_model, encoded).items()}


def _given(
    language_model: LanguageModel, encoded: Sequence[Sequence[int]], states: NDArray[Any]
) -> dict[str, list[float]]:
    made = given_scores(language_model, encoded, states, 0)
    return {name: values.tolist() for name, values in made.items() if name != RANDOM}


def _asked(language_model: LanguageModel, prompts: Sequence[str], tokens: int, seed: int) -> dict[str, Any]:
    raw = replace(language_model, chat_template="none")
    made = {
        "verbalised": verbalised(language_model, prompts),
        "semantic-entropy": semantic_agreement(raw, prompts, max_new_tokens=tokens, seed=seed),
    }
    return {
        "scores": {name: each.score.tolist() for name, each in made.items()},
        "generated": {name: each.tokens for name, each in made.items()},
    }


def prepare(preparation: Any) -> None:
    """The pool, made in the cache by whichever seed comes first, and linked into the preparation's folder."""
    options = preparation.options
    asked = [
        each for domain in MAIN for each in questions(domain, min(options["prompts"], _MOST.get(domain, math.inf)))
    ]
    asked += questions(HELD_OUT, options["prompts"] // 2) + big_math(options["proxy"])
    language_model = load(options["model"])
    folder = cache_folder() / "studies" / f"routerxbench-{_key(language_model, asked, options['asked'])}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_name(f"{folder.name}.lock"), preparation.beat):
        world = pool(language_model, asked, folder, many=options["asked"])
    target = preparation.folder / VALUES
    target.unlink(missing_ok=True)
    try:
        os.link(folder / FEATURES / VALUES, target)
    except OSError:  # another file system
        shutil.copyfile(folder / FEATURES / VALUES, target)
    world.note(preparation.folder)
    # What the seed needs, whoever made it: which seed came first decides nothing.
    preparation.spend(phase="build", prompts=len(asked), prompt_tokens=int(world.tokens.sum()))


def _key(language_model: LanguageModel, asked: Sequence[Question], many: int) -> str:
    """Of everything that decides what the pool holds; sums change with the number of threads."""
    import torch

    parts = {
        "version": _VERSION,
        "weights": weights_digest(language_model.model),
        "asked": [[each.id, each.domain, each.prompt, each.gold, each.solved] for each in asked],
        "tokens": {name: domain.tokens for name, domain in _DOMAINS.items()},
        "many": many,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _alone(path: Path, beat: Callable[[], None]) -> Iterator[None]:
    """Holds the lock; gives signs of life while another seed makes the same pool."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(path, wait=LOOK_AGAIN))
                break
            except WorkFailed:
                beat()
        yield


# --- arms -----------------------------------------------------------------------------------------------------------------


def auroc_items(score: NDArray[Any], solved: NDArray[Any], domains: NDArray[Any]) -> Array:
    """One number a prompt, [n], whose mean is the mean over domains of the AUROC, and whose variance is that of the AUROC.

    With V_i the share of the prompts of the other label in i's domain that its score is on the right side of (ties half),
    N prompts in n_d of a domain, m of i's label among them, K domains: N / (K n_d) (A_d + (n_d / m) (V_i - A_d)). The mean
    of (V_i - A_d) over either label is 0, and the two variances are DeLong's. nan throughout where a domain has one label.
    """
    names = dict.fromkeys(domains.tolist())
    found = np.full(len(score), math.nan)
    for name in names:
        places = np.flatnonzero(domains == name)
        positive = solved[places] > 0.5
        if positive.all() or not positive.any():
            return np.full(len(score), math.nan)
        values = score[places]
        above = _share_below(values[positive], values[~positive])
        below = 1 - _share_below(values[~positive], values[positive])
        area = above.mean()
        own = np.empty(len(places))
        own[positive] = area + len(places) / positive.sum() * (above - area)
        own[~positive] = area + len(places) / (~positive).sum() * (below - area)
        found[places] = own * len(score) / (len(names) * len(places))
    return found


def _share_below(values: Array, others: Array) -> Array:
    """Of each value the share of the others that lies below it, ties half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(others))


@closed
def scorer(world: RoutingWorld, by: By, name: str, learn: NDArray[np.intp], seed: int) -> Callable[[Any], Array]:
    """What gives the scores of prompts by their places, [k] for k places, after learning from those of `learn`.

    by: a probe of `scoring.PROBES` on the states, a classifier of `scoring.CLASSIFIERS` on sentence vectors (the last
    states), a score that learns nothing, the one of `LOGIT_SCORES` that ranks best in `learn`, or a draw.
    """
    if by == "probe":
        probe = PROBES[name](random_state=seed).fit(world.states[learn], world.solved[learn])
        return lambda places: probe.decision_function(world.states[places])
    if by == "vectors":
        classifier = CLASSIFIERS[name]()
        if "random_state" in classifier.get_params():
            classifier.set_params(random_state=seed)
        classifier.fit(directions(world.states[learn]), world.solved[learn])
        return lambda places: classifier.score_prompts(directions(world.states[places]))
    if by == "random":
        drawn = Random(random_state=seed).score_prompts(rows_like(len(world.ids)))
        return lambda places: drawn[places]
    chosen = world.scores[best_logit(world, learn) if by == "best-logit" else name]
    return lambda places: chosen[places]


def best_logit(world: RoutingWorld, learn: NDArray[np.intp]) -> str:
    """The score of the next token's logits with the highest AUROC, by domain, on these prompts; the first of equals."""
    solved, domains = world.solved[learn], world.domains[learn]
    found = {name: float(auroc_items(world.scores[name][learn], solved, domains).mean()) for name in LOGIT_SCORES}
    return max(found, key=lambda name: -math.inf if math.isnan(found[name]) else found[name])


def measure(run: Any, world: RoutingWorld) -> None:
    """One arm of a seed: learns where it does, and is measured on the prompts that no arm learns from."""
    by, name = run.settings["by"], run.settings["score"]
    domains = world.entered()
    learn, test = world.drawn(domains, run.seed), world.tested(domains)
    score = scorer(world, by, name, learn, run.seed)
    run.spend(phase="build", labels=len(learn))
    values = score(test)
    asked = test[np.isfinite(world.scores[ASKED[0]][test])]
    run.measure("auroc_asked", float(_items(world, score, asked).mean()))
    if name == RANDOM:
        _domains(run, world, domains)
    if name in world.generated:
        run.spend(generated_tokens=world.generated[name])
    if not np.isfinite(values).all():
        return
    _record(run, "auroc", world, score, test)
    for domain in domains:
        inside = world.tested([domain])
        run.measure("auroc", float(auroc(score(inside), world.solved[inside])), where={"domain": domain})
    _scenarios(run, world, values, test)
    if len(held_out := world.tested([HELD_OUT])):
        _record(run, "auroc_transfer", world, score, held_out)
    if len(proxy := world.tested([PROXY])):
        _record(run, "auroc_proxy", world, scorer(world, by, name, world.drawn([PROXY], run.seed), run.seed), proxy)


def _items(world: RoutingWorld, score: Callable[[Any], Array], places: NDArray[np.intp]) -> Array:
    return auroc_items(score(places), world.solved[places], world.domains[places])


def _record(
    run: Any, outcome: str, world: RoutingWorld, score: Callable[[Any], Array], places: NDArray[np.intp]
) -> None:
    run.items(outcome, [world.ids[place] for place in places], _items(world, score, places))


def _scenarios(run: Any, world: RoutingWorld, values: Array, test: NDArray[np.intp]) -> None:
    """Of the prompts of all domains as one stream; every answer of the strong model counts as right."""
    weak, strong = world.solved[test], np.ones(len(test))
    run.measure("lpm", lpm(values, weak, strong))
    run.measure("mpm", mpm(values, weak, strong))
    run.measure("hcr", hcr(values, weak, strong))
    a = curve(values, weak, strong)
    sent = CALLS * len(test) // STEPS
    run.measure("useful_calls", float(a[CALLS] - a[0]) * len(test) / sent if sent else math.nan)
    read = curve(values, np.zeros(len(test)), world.tokens[test])
    run.measure("sent_tokens", float(read[CALLS] / read[-1]))


def _domains(run: Any, world: RoutingWorld, entered: Sequence[str]) -> None:
    """Of every domain how much of it the model solves, and whether it entered."""
    for domain in dict.fromkeys(world.domains.tolist()):
        places = np.flatnonzero((world.domains == domain) & (world.learnt | (domain == HELD_OUT)))
        role = {HELD_OUT: "held out", PROXY: "proxy"}.get(domain, "entered" if domain in entered else "left out")
        run.measure(
            "solve_rate", int(world.solved[places].sum()), of=len(places), where={"domain": domain, "role": role}
        )
