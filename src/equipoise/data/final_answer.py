"""Which answer a text comes to: what stands in its last \\boxed{}, a number, the letter of a choice.

A marked answer goes before any other: \\boxed{...}, the line after ####, what follows "the answer is" or "Answer:".
Give these functions what stands after the thinking (`data.text.after_thinking`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context
from fractions import Fraction
from typing import Literal

from equipoise.data.text import unified

_BRACE = re.compile(r"\\(?P<box>boxed|fbox)(?![A-Za-z])\s*(?P<open>\{|(?P<bare>[^\s{}$]*))|\\.|[{}]", re.DOTALL)
_SAID = re.compile(
    r"####|\b(?:answer|(?:correct|right|best|final)\s+(?:option|choice|result|value))\b(?!\s+(?:is|are)\s+not\b)"
    r"(?:\s+(?:is|are|was|would\s+be|equals|should\s+be|must\s+be)\b)?\s*[:=]?",
    re.IGNORECASE,
)
_MARKS = re.compile(r"(?:####|:|=|\b(?:is|are|was|be|equals))$", re.IGNORECASE)

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_POWER_OF_TEN = r"10\s*(?:\^|\*\*)\s*(?:\{\s*([-+]?\d{1,3})\s*\}|\(\s*([-+]?\d{1,3})\s*\)|([-+]?\d{1,3})\b(?!\.\d))"
# In this order: what a number may be written with besides digits, and how it is read.
_PLAIN = (
    (re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])"), " "),  # 1½
    (re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))"), ","),
    (re.compile(r"\u2212|(?<![\w)\]}])[\u2012\u2013](?=[\d.$])"), "-"),
    (re.compile(r"(?<=\d)(?:\{,\}|,\\!\s?|\\[,; ])(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\(?=[$%])|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]"), ""),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (
        re.compile(r"(\d?)\\[dtc]?frac\s*(?:\{\s*([-\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))(?!\d)"),
        r"\1 \2\3/\4\5",
    ),
    # The blank of the line above, unless a whole number goes before: 1\\frac12.
    (re.compile(r"(?<=[-(=\s]) (?=\d[\d.,]*/)|^ (?=-?\d[\d.,]*/)"), ""),
    (re.compile(rf"(?<=\d)\s*(?:\\times|\\cdot|[x×·*])\s*{_POWER_OF_TEN}"), r"e\1\2\3"),
    (re.compile(rf"(?<![\w.^]){_POWER_OF_TEN}"), r"1e\1\2\3"),
    # A minus apart from its number, where nothing goes before that it could subtract from: x = - 5, -{5}.
    (
        re.compile(
            r"(^[\s*]*|[=≈(\[{#][ \t]*|:\**[ \t]*|\b(?:is|are|was|be|equals)[ \t]+|(?<![\w)\]}*$])(?:\*{1,2}|(?=\$-)))"
            r"(\$[ \t]*|)-[ \t{(]+(?=[$€£¥]?\s?\.?\d)"
        ),
        r"\1\2-",
    ),
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[,'’]\d{3})+(?!\d)")
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])-)?(?:[$€£¥]\s?(?P<inner>-)?)?"
    r"(?<![A-Za-z0-9_.^/])(?<!\^[-+])(?:(?P<mixed>\d{1,9}) (?=\d+/\d))?(?P<digits>\d+(?:\.\d+)?|\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,3}(?!\w))?(?:/(?P<under>\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\w))?)(?![\d/]))?"
    r"(?P<percent>\s?%|\s+percent\b)?"
)
# What makes another number of the one beside it, once units (5 m^2, 90^\circ, 3 \frac{m}{s}) are left out.
_UNIT_LETTER = "[ghlmsACFJKLNVW]"  # that stand for units where they are not said to: 5 m; in \text{} any but some
_WRAPPED_UNIT = re.compile(
    r"\\(?:text|textbf|mathrm|mbox)\s*\{[\s~]*[A-Zdghlmst]\s*\}(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d)|[²³])?"
)
_UNIT_PART = rf"\{{\s*(?:[A-Za-z]{{2,}}|{_UNIT_LETTER})?\s*(?:\^\s*\{{?\s*\d\s*\}}?\s*)?\}}"
_UNIT = re.compile(
    r"\^\s*\{?\s*(?:\\circ(?![A-Za-z])|°|o\b)"
    r"|(?:(?<=[\w/})\]$] )|(?<=[/~·]))(?:[kcdm]?m|in|ft|yd|mi|s|units?|inch(?:es)?|feet|foot|yards?|miles?"
    r"|(?:kilo|centi|milli)?met(?:er|re)s?|seconds?)\s*\^\s*\{?\s*-?\d"
    rf"|\\[dtc]?frac\s*{_UNIT_PART}\s*{_UNIT_PART}"
)
_VARIABLE = r"(?![aAI]\ [A-Za-z]{2})[A-Za-z](?![A-Za-z])"  # a letter that stands alone, and is no article
_OPERATOR = r"(?:\s?(?:[-+×·÷]|\\(?:times|cdot|div)(?![A-Za-z]))\s?|\ \*\ |\*(?=[\w\\(]))"
_BESIDE = re.compile(
    rf"""
      [√π∞^<>≤≥] | \d_ | [\d)}}]! | \|\s?-\s?\d
    | \\(?:[a-z]*frac|sqrt|pi|infty|pm|mp|log|ln|lg|(?:arc)?(?:sin|cos|tan|cot|sec|csc|tg|ctg)h?|exp|binom
        |[lg]eq?(?:slant)?|[lg]t|[lr](?:floor|ceil))(?![A-Za-z])
    | (?<![A-Za-z])(?:(?:sqrt|ln)\s?[\d({{]|(?:log|sin|cos|tan|exp)\() | \d[ *]?pi\b
    # 2k, 3xy, 4 i, but neither 5 m nor 1e-5
    | \d[abknxyz]{{1,3}}\b
    | \d[ *]?(?!{_UNIT_LETTER}|[eE][-+]?\d)[A-Za-z](?=\.?\s*(?:$|[-+*/^_(){{}}\[\],;=$]))
    | \d\s?\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|kappa|lambda|nu|xi|rho|sigma|tau|(?:var)?phi|chi|psi
        |omega|Delta|vec|bar|hat|over(?:line|rightarrow)|[lc]?dots)(?![A-Za-z])
    # 1 - p, 6 + \Delta, 5/x, x + 5, x - y
    | [\d)}}]{_OPERATOR}\(?(?:{_VARIABLE}|\\[A-Za-z]) | \d\s?[+×·]\s?[A-Za-z] | \d\s?/\s?\(?(?!{_UNIT_LETTER}){_VARIABLE}
    | (?<![A-Za-z0-9\\]){_VARIABLE}{_OPERATOR}\(?(?:[\d.]|{_VARIABLE}|\\[A-Za-z]) | [A-Za-z](?:\+|\ \+\ )\d
    """,
    re.VERBOSE,
)
_RATIO = re.compile(r"\w(?::\w| : )")
_BRACKET = re.compile(r"[(\[{]([^()\[\]{}]*)")
_FORMULA = re.compile(r"[\s*]*(?:\$([^$]+)\$(?!\d)|\\\(([^$]+?)\\\))")
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
_BLANKS = re.compile(r"[ \t]+")
_ALTERNATIVES = re.compile(r"\n|\bor\b")
_SEVERAL = re.compile(r"[,;]|\band\b")
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s|$)")
_LONGEST = 1000  # digits; more is no answer

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}")
_PRONOUN = r"(?!(?<=I)\s+[a-z])"
_LETTER = re.compile(
    r"(?:(?:the|option|choice|letter|answer|is) )*[ (\[{$\"'“‘]*"
    rf"(?:(?P<upper>[A-Z])(?![A-Za-z0-9'’_]){_PRONOUN}|(?P<lower>[a-z])(?=\s*[)\]}}.:\"'”’$]|\s*$))"
)
_FURTHER = re.compile(rf"[)\]}}\"'”’]*\s*(?:,|/|&|or\b|and\b)\s*[(\[{{\"'“‘]*([A-Z])(?![A-Za-z0-9'’_]){_PRONOUN}")
_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_SPELLED = re.compile(
    r"^[ \t]*\(?([A-Z])[).:](?=\s|$)|\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\b|^[ \t]*([A-Z])[ \t]*$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written; percent: whether a percent sign followed."""

    value: Fraction
    percent: bool = False

    def __str__(self) -> str:
        context = Context(prec=21 if self.value.denominator == 1 else 12)
        value = context.divide(self.value.numerator, self.value.denominator).normalize()
        shown = f"{value:f}" if abs(value.adjusted()) <= 20 else f"{value:.12g}"
        return f"{shown} %" if self.percent else shown

    def equals(self, other: "Number", *, relative: Fraction) -> bool:
        """Whether both mean the same: whole numbers exactly, others within `relative` of the larger; 50 % is 50 and 0.5."""
        values, others = (
            {number.value, number.value / 100}
            if number.percent and not (self.percent and other.percent)
            else {number.value}
            for number in (self, other)
        )
        return any(_close(first, second, relative) for first in values for second in others)


def _close(first: Fraction, second: Fraction, relative: Fraction) -> bool:
    if first.denominator == second.denominator == 1:
        return first == second
    return abs(first - second) <= relative * max(abs(first), abs(second))


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} (or \\fbox, `\\boxed 5`) whose braces match; None without one."""
    boxes = _boxes(text)
    return boxes[-1][1] if boxes else None


def _boxes(text: str) -> list[tuple[int, str]]:
    """(where, content) of every box with no box inside; braces after a backslash are no braces.

    One pass: what a model writes that repeats itself may hold thousands of boxes that nothing closes.
    """
    boxes: list[tuple[int, str]] = []
    opened: list[tuple[int, int] | None] = []  # where a box and its content begin, None for other braces
    for brace in _BRACE.finditer(text):
        if brace["bare"]:
            boxes.append((brace.start(), brace["bare"]))
        elif brace["open"] == "{":
            opened.append((brace.start(), brace.end()))
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened:
            box = opened.pop()
            if box is not None and (not boxes or boxes[-1][0] < box[0]):
                boxes.append((box[0], text[box[1] : brace.start()].strip()))
    return boxes


def _marked(text: str) -> list[tuple[str, bool]]:
    """(what is marked as the answer, whether by a box or ####), in the order of the text.

    What is said goes on to the end of its line or to the next mark.
    """
    marks = [mark for mark in _SAID.finditer(text) if _MARKS.search(mark[0].rstrip())]
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    said = [
        (mark.start(), text[mark.end() : end].partition("\n")[0], mark[0] == "####")
        for mark, end in zip(marks, ends, strict=False)
    ]
    return [(content, strict) for _, content, strict in sorted([*said, *((at, box, True) for at, box in _boxes(text))])]


def number(text: str) -> Number | None:
    """The number that a text comes to, None when there is none.

    The last one that is marked: in a box or after #### (where it has to be the only one, with nothing beside it that makes
    another number of it: `_only`), or the first after "the answer is" (but of a formula, which is held to the same); within
    what is marked, what follows the last equal sign. Without a mark the last number of the text. Read are signs (every kind
    of minus, unless it subtracts), thousands separators (groups of three), decimals with a point, powers of ten, fractions
    (3/4, 1 1/2, \\frac34, ½), percent, currencies, digits of every script; not read are decimal commas and words.
    """
    for content, strict in reversed(_marked(text)):
        found = next(_numbers(content.rpartition("=")[2]), None)
        if found is not None:
            formula = content if strict else _formula(content)
            return found if formula is None else _only(formula, of="value")
    return next(reversed(list(_numbers(text))), None)


def _formula(content: str) -> str | None:
    """The formula that what is said begins with ("the answer is $2\\sqrt{3}$"); None for words, be they of dollars."""
    found = _FORMULA.match(content)
    formula = found and (found[1] or found[2])
    return None if formula is None or _PROSE.search(_WRAPPED.sub("", formula)) else formula


def gold_number(text: str) -> Number | None:
    """The number that a gold answer is, None where it is no single one.

    As `number` reads it; but it has to be one plain number (see `_only`), and so has what stands before an equal sign to be
    free of variables that are reckoned with: "x = 3" and "3 + 4 = 7" are, "x + y - 3 = 0" is not.
    """
    for content, strict in reversed(_marked(text)):
        if next(_numbers(content), None) is not None:
            return _only(content if strict else _SENTENCE_ENDS.split(content)[0], of="text")
    return _only(text, of="text")


def _only(text: str, *, of: Literal["text", "value"]) -> Number | None:
    """The one number of a text, None where there are several ("(2, 2)") or something beside it makes another number of it.

    That is a root, pi, a power, a factorial, a function, a variable, a bound, a sum ("2\\sqrt{3}", "2^{10}", "5!", "2k",
    "x > 1", "1 - p", "\\frac{\\pi}{6}"); units are no powers (5 m^2). of: where to look for these, in all of the text or
    in what follows equal signs. Alternatives ("5 or 5.0") may say the same.
    """
    text = _UNIT.sub("", _BLANKS.sub(" ", _plain(_WRAPPED_UNIT.sub(" ", text))))
    numbers: set[Number] = set()
    for alternative in _ALTERNATIVES.split(text):
        values = [part.rpartition("=")[2] for part in _SEVERAL.split(alternative)]
        found = [each for value in values for each in _found(value)]
        brackets = _BRACKET.findall(alternative.rpartition("=")[2])
        if (
            len(found) > 1
            or any(_BESIDE.search(each) or _RATIO.search(each) for each in ([alternative] if of == "text" else values))
            or any("," in each and _NUMBER.search(each) for each in brackets)
        ):
            return None
        numbers.update(found)
    return numbers.pop() if len(numbers) == 1 else None


def _numbers(text: str) -> Iterator[Number]:
    return _found(_plain(text))


def _plain(text: str) -> str:
    """With every number as digits."""
    text = _SUPERSCRIPT.sub(lambda raised: "^" + raised[0].translate(_RAISED), text)
    for pattern, plain in _PLAIN[:2]:
        text = pattern.sub(plain, text)
    text = unified(text).replace("\u2044", "/")
    for pattern, plain in _PLAIN[2:]:
        text = pattern.sub(plain, text)
    return _THOUSANDS.sub(lambda grouped: re.sub(r"\D", "", grouped[0]), text)


def _found(text: str) -> Iterator[Number]:
    for found in _NUMBER.finditer(text):
        if len(found[0]) > _LONGEST:
            continue
        under = Fraction(found["under"] or 1)
        if under:
            value = Fraction(int(found["mixed"] or 0)) + Fraction(found["digits"] + (found["exponent"] or "")) / under
            yield Number(-value if found["sign"] or found["inner"] else value, bool(found["percent"]))


def choice(text: str) -> str | None:
    """The letter (A to Z) that a text chooses, None when it chooses none or two of its choices contradict.

    All that are marked count: in a box, after ####, "the answer is", "Answer:", "correct option is". Without a mark: the
    letter that is the whole text, else those at the beginning of a line ("B) ..."), in brackets or after "option". A
    letter is never part of a word, "a" no article and "I" no pronoun.
    """
    text = _WRAPPED.sub(r"\1", unified(text).replace("*", "").replace("`", ""))
    letters = {letter for content, _ in _marked(text) for letter in _letters(content)}
    if not letters:
        if alone := _ALONE.fullmatch(text):
            return alone[1].upper()
        letters = {letter for spelled in _SPELLED.findall(text) for letter in spelled if letter}
    return letters.pop() if len(letters) == 1 else None


def _letters(content: str) -> Iterator[str]:
    content = " ".join(content.split())
    found = _LETTER.match(content)
    while found:
        yield found[found.lastindex or 0].upper()
        found = _FURTHER.match(content, found.end())
