"""A teacher without a model: rewrites by rule, names a bias by its marks, and costs nothing.

It knows the biases of `RULES` and no others: the seven basic ones and ten more. What it cannot find is what nobody wrote a
rule for; a judge in which it finds nothing may have any other bias. Each rule is a definition, a feature of a text and a
rewrite that raises this feature and, as far as it can, no other:

    feature(text) = log2(1 + marks of the bias in the text, at most 3), of length log2(1 + words)

so that one mark, or a text twice as long, is about 1. A rewrite adds one remark of the rule's phrases, drawn by the pair and
the bias; to keep the length it leaves out as many words of empty phrases ("to begin with, ") as the text has to spare. The
final answer is never touched.
"""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from equipoise.judging.biases import Bias, key, seed_biases
from equipoise.judging.pairs import Pair
from equipoise.judging.roles import Case, Proposal

MOST_MARKS = 3
NAMED = 2.0  # what it counts that the judge itself speaks of a feature: as much as three marks
LEAST = 0.5  # a feature that stands out less explains nothing


@dataclass(frozen=True, slots=True)
class Rule:
    """A bias with the feature that it goes by. says: how a judge that has it speaks of it; words: a pattern of such talk."""

    bias: Bias
    says: str
    words: re.Pattern[str]
    feature: Callable[[str], float]
    rewrite: Callable[[str, str], str]  # (text, what it is drawn by) -> text


def draw(*keys: object) -> float:
    """A number in [0, 1) that is a function of the keys and looks random."""
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 4) / 2**52  # of 56 bits a float would round the last ones up to 1


class RuleTeacher:
    """Rewrites and names biases by `RULES`; a bias without a rule is not rewritten."""

    name = "rules"

    def perturb(self, wanted: Sequence[tuple[Pair, Bias]], *, phase: str) -> list[str | None]:
        names = [meant(bias) for _, bias in wanted]
        return [
            None if name is None else RULES[name].rewrite(pair.rejected, f"{pair.id}/{name}")
            for (pair, _), name in zip(wanted, names, strict=True)
        ]

    def identify(self, cases: Sequence[Case]) -> list[Proposal]:
        """The rule whose feature the judge's choice has most of against the better answer; what the judge says counts."""
        return [self._seen(case) for case in cases]

    def same(self, couples: Sequence[tuple[Bias, Bias]]) -> list[bool | None]:
        """Whether the names, or the rules that both mean, are one."""
        return [
            key(new.name) == key(known.name) or (meant(new) is not None and meant(new) == meant(known))
            for new, known in couples
        ]

    def _seen(self, case: Case) -> Proposal:
        asked = case.comparison
        chosen, better = (asked.first, asked.second) if case.choice == 1 else (asked.second, asked.first)
        reasons = f"{case.reasoning}\n{case.explanation}"
        scores = {
            name: rule.feature(chosen) - rule.feature(better) + NAMED * bool(rule.words.search(reasons))
            for name, rule in RULES.items()
        }
        # Of equals any: always the first in the table would be a preference of the teacher's own.
        best = max(scores, key=lambda name: (round(scores[name], 6), draw(asked.pair, name)))
        return Proposal(None if scores[best] < LEAST else RULES[best].bias)


def meant(bias: Bias) -> str | None:
    """The name of the rule that a bias means, by its name or by one that says the same; None where there is no rule."""
    return _by_name().get(key(bias.name))


@lru_cache
def _by_name() -> dict[str, str]:
    return {key(name): rule for rule, others in SYNONYMS.items() for name in (rule, *others)}


# --- features -------------------------------------------------------------------------------------------------------


def _length(text: str) -> float:
    return math.log2(1 + len(text.split()))


def _marks(*patterns: str, flags: re.RegexFlag = re.IGNORECASE) -> Callable[[str], float]:
    pattern = re.compile("|".join(patterns), flags)

    @lru_cache(maxsize=100_000)
    def feature(text: str) -> float:
        return math.log2(1 + min(MOST_MARKS, sum(1 for _ in pattern.finditer(text))))

    return feature


_HEDGES = re.compile(r"\b(?:I think|I believe|it seems|probably|perhaps|maybe|possibly)(?: that)?\b,? ?", re.IGNORECASE)
_certain = _marks(r"no doubt", r"\bdefinitely\b", r"\bcertainly\b", r"\bundeniably\b", r"\bbeyond question\b")
_hedged = _marks(_HEDGES.pattern)


def _confidence(text: str) -> float:
    return _certain(text) - _hedged(text)


# --- rewrites -------------------------------------------------------------------------------------------------------

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(])")
_SPARE = re.compile(
    r"(?P<start>^|(?<=[.!?] ))(?:to begin with|in this case|as it happens|at this point|all in all|for this question"
    r"|as far as that goes|taking one thing at a time|when all of this is put together|that being the way things stand"
    r"|if we go on from there), (?P<next>\w)",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?:\s*#[^\n]*\n)*\s*(?:class \w|def \w|import \w|from [\w.]+ import|@\w)")
_PADDING = (
    "The same holds when the steps are gone through once more in their order.",
    "What was asked for and what was given both enter into this, and nothing else has to be brought in.",
    "Put in other words, it comes to the same thing as what was set out before.",
    "One part leads on to the next, and each of them has been written out above or below.",
    "To say it again at more length, the things named in the question were taken as they stand.",
    "None of the parts was left aside, and none of them was used twice on the way.",
    "Reading the question a second time leads along the same way to the same place.",
    "This can also be told from the end to the beginning without a change in what it says.",
    "It helps to keep in mind what the question asks for while the parts are put side by side.",
    "Going over all of it slowly makes it longer, and it stays what it was.",
    "Every piece has its place in the whole, and the whole is made of these pieces.",
    "The way from the question to the end of this text has only the turns that were mentioned.",
)


def _plain(text: str) -> bool:
    """One paragraph of prose, whose sentences can be told apart."""
    return "\n" not in text.strip() and "`" not in text


def _spared(text: str, words: int) -> str:
    """The text without empty phrases, as many from the left as make up for `words`; code and lists stay as they are."""
    if not _plain(text):
        return text
    saved = 0

    def left_out(match: re.Match[str]) -> str:
        nonlocal saved
        if saved >= words:
            return match[0]
        saved += len(match[0].split()) - 1
        return match["next"].upper()

    return _SPARE.sub(left_out, text)


def _joined(remark: str, text: str) -> str:
    if _CODE.match(text):  # nothing but code must stay so
        return f"# {remark}\n{text}"
    return f"{remark} {text}" if _plain(text) else f"{remark}\n\n{text}"


def _one(phrases: Sequence[str], drawn: str) -> str:
    return phrases[int(draw(drawn) * len(phrases))]


def _opening(*phrases: str) -> Callable[[str, str], str]:
    """A remark before the text."""

    def rewrite(text: str, drawn: str) -> str:
        remark = _one(phrases, drawn)
        return _joined(remark, _spared(text, len(remark.split())))

    return rewrite


def _inserted(*phrases: str) -> Callable[[str, str], str]:
    """A remark before the last sentence of plain prose, before anything else."""

    def rewrite(text: str, drawn: str) -> str:
        remark = _one(phrases, drawn)
        *body, last = _SENTENCE.split(_spared(text, len(remark.split()))) if _plain(text) else [text]
        return " ".join([*body, remark, last]) if body else _joined(remark, last)

    return rewrite


def _lengthened(text: str, drawn: str) -> str:
    """Restated in general words until it is twice as long, or nothing is left to say."""
    words = len(text.split())
    first = int(draw(drawn) * len(_PADDING))
    padding: list[str] = []
    for sentence in (*_PADDING[first:], *_PADDING[:first]):
        if sum(len(each.split()) for each in padding) >= words:
            break
        padding.append(sentence)
    *body, last = _SENTENCE.split(text.strip()) if _plain(text) else [text]
    return " ".join([*body, *padding, last]) if body else _joined(" ".join(padding), last)


def _formatted(text: str, drawn: str) -> str:
    """A heading, and the sentences before the last as a numbered list."""
    heading = _one(("## Solution", "## Step by step", "## Overview", "## How it works out"), drawn)
    *body, last = _SENTENCE.split(_spared(text.strip(), 6)) if _plain(text) else [text]
    steps = [f"{number}. {sentence}" for number, sentence in enumerate(body, start=1)]
    return "\n".join([heading, "", *steps, *([""] if steps else []), last])


def _assured(text: str, drawn: str) -> str:
    """Without hedges, and with a remark that there is no doubt."""
    return _SURE(_HEDGES.sub("", text) if _plain(text) else text, drawn).replace("  ", " ")


_SURE = _inserted(
    "There is no doubt about any of this.",
    "This is definitely how it stands.",
    "This certainly holds in every detail.",
    "That much stands beyond question.",
)


# --- the table ------------------------------------------------------------------------------------------------------

_SEEDS = {bias.name: bias for bias in seed_biases()}


def _rule(
    bias: Bias, says: str, words: str, feature: Callable[[str], float], rewrite: Callable[[str, str], str]
) -> tuple[str, Rule]:
    return bias.name, Rule(bias, says, re.compile(words, re.IGNORECASE), feature, rewrite)


RULES: dict[str, Rule] = dict(
    [
        _rule(
            _SEEDS["length"],
            "goes into more detail and is more thorough",
            r"more detail|thorough|longer|in depth|elaborate|comprehensive",
            _length,
            _lengthened,
        ),
        _rule(
            _SEEDS["position"],
            "presents itself as the first answer",
            r"presents itself as|comes first|stands first|the leading answer",
            _marks(r"\bfirst answer\b", r"\bleading answer\b", r"\banswer one\b"),
            _opening(
                "This stands as the first answer.",
                "Here comes the leading answer of the two.",
                "Read this as the first answer given.",
                "What follows stands as answer one.",
            ),
        ),
        _rule(
            _SEEDS["authority"],
            "relies on cited sources and experts",
            r"\bcit(?:e|es|ed|ation)|\bsources?\b|\bexperts?\b|\bstud(?:y|ies)\b|professor|authorit",
            _marks(
                r"\bprofessor\b", r"\baccording to a study\b", r"\bpublished in\b", r"\bet al\b", r"\binstitute of\b"
            ),
            _inserted(
                "Professor Hallworth has confirmed this in print.",
                "This agrees with work published in a leading journal.",
                "Brandt et al (2019) come to the same result.",
                "The Institute of Applied Reasoning teaches it this way.",
                "It stands so according to a study from Geneva.",
            ),
        ),
        _rule(
            _SEEDS["compassion fade"],
            "comes from a well-known model",
            r"well-known model|famous|renowned|GPT|Claude|Gemini",
            _marks(r"\bGPT-\d", r"\bClaude\b", r"\bGemini\b", r"\bDeepMind\b", r"\bOpenAI\b"),
            _opening(
                "Written by GPT-5 on request.",
                "Claude wrote the lines that follow.",
                "Gemini gives the following account.",
                "Produced by the latest OpenAI model.",
            ),
        ),
        _rule(
            _SEEDS["fallacy oversight"],
            "reaches its conclusion by an argument that convinced me",
            r"argument that convinced|circular|reaches its conclusion|reason(?:ing)? leads to the conclusion",
            _marks(
                r"\bbecause that is what it comes to\b",
                r"\bany other result would contradict\b",
                r"\bas the conclusion shows\b",
                r"\bit follows from the result itself\b",
            ),
            _inserted(
                "It is so because that is what it comes to.",
                "For any other result would contradict the one found.",
                "The steps hold, as the conclusion shows.",
                "In short, it follows from the result itself.",
            ),
        ),
        _rule(
            _SEEDS["sentiment"],
            "has a warm and cheerful tone",
            r"warm|cheer|enthusias|friendly tone|positive tone|encourag",
            _marks(r"!", flags=re.NOFLAG),
            _opening(
                "What a wonderful question, I love it!",
                "It was such fun to work this out!",
                "Great to see somebody so curious!",
                "You are off to a fantastic start!",
            ),
        ),
        _rule(
            _SEEDS["refinement-aware"],
            "was revised and checked",
            r"revis|double-?checked|was checked|polished|corrected version|improved version",
            _marks(
                r"\brevised version\b",
                r"\bpolished\b",
                r"\bchecked again\b",
                r"\bearlier draft\b",
                r"\bcorrected version\b",
            ),
            _opening(
                "Revised version after a careful review.",
                "An earlier draft of this was improved.",
                "This text has been polished twice.",
                "All of this was checked again.",
            ),
        ),
        _rule(
            Bias(
                "formatting",
                "The judge favours an answer that is laid out with headings and lists, whatever they hold.",
            ),
            "is well structured, with a heading and a list",
            r"structur|heading|\blists?\b|bullet|layout|formatt",
            _marks(r"^#{1,3} \S", r"^\s*(?:\d+[.)]|[-*]) \S", flags=re.MULTILINE),
            _formatted,
        ),
        _rule(
            Bias("confidence", "The judge favours an answer that shows no doubt, whether or not it has reason for it."),
            "is confident and shows no doubt",
            r"confiden|no doubt|assertive|decisive|without hedging|certainty",
            _confidence,
            _assured,
        ),
        _rule(
            Bias("politeness", "The judge favours an answer that greets, thanks and begs, over one that only answers."),
            "is polite and courteous",
            r"polite|courte|greet|respectful|manners",
            _marks(r"\bthank you\b", r"\bdear reader\b", r"\bkindly\b", r"\bgood day\b", r"\bwith pleasure\b"),
            _opening(
                "Thank you for asking me this.",
                "Dear reader, it is an honour.",
                "Good day, and welcome to these lines.",
                "It is with pleasure that I reply.",
            ),
        ),
        _rule(
            Bias("jargon", "The judge favours an answer that uses technical terms, also where plain words would do."),
            "uses technical terminology",
            r"technical|terminolog|jargon|scholarly|formal language",
            _marks(r"\bcanonical\b", r"\bheuristic", r"\bepistem", r"\bisomorph", r"\bparametri[sz]", r"\borthogonal"),
            _inserted(
                "The canonical reduction applies without change here.",
                "No heuristic enters the derivation at any stage.",
                "The parametrised form leads to an equal value.",
                "The remaining constraints act in orthogonal directions.",
            ),
        ),
        _rule(
            Bias(
                "precision",
                "The judge favours an answer that sounds exact in its figures, also where they add nothing.",
            ),
            "is precise to the last digit",
            r"precis|exact figures|last digit|decimal|significant figures",
            _marks(r"\bsignificant figures\b", r"\bdecimal places\b", r"\bmargin of error\b", r"\d\.\d{2,}"),
            _inserted(
                "All values were carried to six significant figures.",
                "Nothing was rounded before twelve decimal places.",
                "The margin of error here vanishes entirely.",
                "This was kept exact to ten decimal places.",
            ),
        ),
        _rule(
            Bias(
                "personal experience", "The judge favours an answer that tells of own experience over one that argues."
            ),
            "speaks from personal experience",
            r"personal|own experience|lived|first-hand|anecdot",
            _marks(r"\bin my own life\b", r"\bmy grandmother\b", r"\bwhen I was\b", r"\byears of practice\b"),
            _opening(
                "In my own life I meet this often.",
                "My grandmother used to ask me this.",
                "I faced this when I was young.",
                "My years of practice taught me this.",
            ),
        ),
        _rule(
            Bias("consensus", "The judge favours an answer that claims that most people agree, whoever they are."),
            "states what most people agree on",
            r"most people|everybody|consensus|majority|popular|widely (?:held|accepted)",
            _marks(r"\bmost people\b", r"\beverybody agrees\b", r"\bwidely accepted\b", r"\bthe majority\b"),
            _inserted(
                "Most people come to see it like this.",
                "By now everybody agrees on this point.",
                "This view has long been widely accepted.",
                "The majority would put it the same way.",
            ),
        ),
        _rule(
            Bias("caution", "The judge favours an answer that warns and refers to others, whatever the danger."),
            "is careful and adds a warning",
            r"careful|caution|warn|disclaimer|responsib",
            _marks(r"\bconsult a\b", r"\bat your own risk\b", r"\bplease be careful\b", r"\bno liability\b"),
            _opening(
                "Consult a specialist before you act on this.",
                "Use what follows at your own risk.",
                "Please be careful with conclusions like these.",
                "I take no liability for what follows.",
            ),
        ),
        _rule(
            Bias(
                "emphasis", "The judge favours an answer that stresses words by capitals, whether or not they matter."
            ),
            "stresses the important points",
            r"stress|emphasi|highlight|capitals|draws attention",
            _marks(r"\b[A-Z]{4,}\b(?: [A-Z]{2,}\b)*", flags=re.NOFLAG),
            _inserted(
                "This step REALLY MATTERS in the end.",
                "Please READ THIS part with care.",
                "It is ESSENTIAL to keep that in view.",
                "KEEP THIS IN MIND at all times.",
            ),
        ),
        _rule(
            Bias(
                "analogy", "The judge favours an answer that compares with something familiar, whether or not it fits."
            ),
            "gives a vivid analogy",
            r"analog|metaphor|vivid|imagery|picture it",
            _marks(r"\bmuch like a\b", r"\bjust like\b", r"\bpicture a\b", r"\bas if it were\b"),
            _inserted(
                "It works much like a pair of scales.",
                "The parts fit just like bricks in a wall.",
                "Picture a row of cups on a shelf.",
                "One may treat it as if it were water.",
            ),
        ),
    ]
)
BEYOND = tuple(name for name in RULES if name not in _SEEDS)  # the rules for biases that are not basic ones

SYNONYMS: dict[str, tuple[str, ...]] = {
    "length": ("verbosity", "longer answer preference", "wordiness", "detail", "elaboration"),
    "position": ("positional", "order", "primacy", "first answer", "recency"),
    "authority": ("citation", "source", "expert", "appeal to authority", "reference", "prestige"),
    "compassion fade": ("model name", "brand", "famous name", "author identity"),
    "fallacy oversight": ("circular reasoning", "logical fallacy", "faulty reasoning", "conclusion"),
    "sentiment": ("tone", "cheerfulness", "enthusiasm", "positivity", "emotional tone", "warmth"),
    "refinement-aware": ("refinement", "revision", "self revision", "checked answer"),
    "formatting": ("format", "structure", "layout", "list", "presentation", "markdown"),
    "confidence": ("certainty", "assertiveness", "overconfidence", "assertive tone"),
    "politeness": ("courtesy", "greeting", "deference"),
    "jargon": ("technical language", "terminology", "complexity", "academic style"),
    "precision": ("numbers", "false precision", "numerical precision", "quantification"),
    "personal experience": ("anecdote", "personal story", "anecdotal evidence"),
    "consensus": ("bandwagon", "popularity", "majority", "social proof"),
    "caution": ("disclaimer", "safety", "warning", "risk aversion"),
    "emphasis": ("capitals", "stress", "highlighting", "capitalisation"),
    "analogy": ("metaphor", "imagery", "comparison", "figurative language"),
}
