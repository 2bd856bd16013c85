"""Is this answer right: normalised matching, and ROUGE-L recall as the rouge-score package computes it."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from equipoise.data.text import unified

_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_NOT_ROUGE = re.compile(r"[^a-z0-9]+")


def normalize(text: str) -> str:
    """Words in lower case, one blank apart, without punctuation, English articles and differences of Unicode form.

    As SQuAD's evaluation, with these differences, all because invented names, numbers and other scripts are compared:
    characters are unified (digits of every script are digits, what cannot be seen is left out); a hyphen separates words
    instead of joining them; a decimal point and a minus sign before a number stay, thousands separators go; "A" alone stays.
    """
    text = unified(unified(text).casefold()).replace("\u2212", "-")
    text = _THOUSANDS.sub("", _APOSTROPHE.sub("", text))
    neighbours = zip(f" {text}", text, f"{text[1:]} ", strict=False)
    words = "".join(character if _spoken(before, character, after) else " " for before, character, after in neighbours)
    return " ".join([word for word in words.split() if word not in _ARTICLES] or words.split())


def _spoken(before: str, character: str, after: str) -> bool:
    if character in ".:":
        return before.isdigit() and after.isdigit()
    if character == "-":
        return after.isdigit() and not before.isalnum() and before not in ")-"
    category = unicodedata.category(character)
    return category[0] in "LNM" or category in ("Sc", "Sm", "So")


def matches(answer: str, references: str | Iterable[str]) -> bool:
    """Whether the answer is one of the references after `normalize`; an empty answer matches nothing."""
    references = [references] if isinstance(references, str) else references
    found = normalize(answer)
    return bool(found) and any(found == normalize(reference) for reference in references)


def contains(answer: str, references: str | Iterable[str]) -> bool:
    """Whether the words of one of the references stand in the answer, next to each other and in order."""
    references = [references] if isinstance(references, str) else references
    found = f" {normalize(answer)} "
    return any(wanted and f" {wanted} " in found for wanted in map(normalize, references))


def rouge_tokens(text: str, stem: Callable[[str], str] | None = None) -> list[str]:
    """rouge-score's words: runs of a-z and 0-9 in lower case; everything else, other alphabets too, separates.

    stem: applied to words of more than three letters, as rouge-score does with NLTK's PorterStemmer().stem.
    """
    tokens = _NOT_ROUGE.sub(" ", text.lower()).split()
    return [stem(token) if stem and len(token) > 3 else token for token in tokens]


def rouge_l_recall(reference: str, answer: str, *, stem: Callable[[str], str] | None = None) -> float:
    """Share of the reference's words in the longest common subsequence with the answer, in [0, 1] (Lin 2004, eq. 3).

    nan when the reference has no word (rouge-score says 0). TOFU stems; here that is off unless asked for, because
    Porter's rules are for English words and merge invented names and values that must be told apart.
    """
    expected, found = rouge_tokens(reference, stem), rouge_tokens(answer, stem)
    return common_subsequence(expected, found) / len(expected) if expected else math.nan


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One row of the usual table in the bits of one integer (Hyyrö 2004): bit i is 0 where the table grows at first[i].
    """
    places: dict[str, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    every = (1 << len(first)) - 1
    row = every
    for token in second:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(first) - row.bit_count()
