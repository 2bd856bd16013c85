"""The answer that a response ends with, so that a rewrite that changes it is noticed: its label would no longer hold.

Forms, of each the last place where it stands: nothing but code; one letter repeated, as JudgeBench asks of choices
("AAAAA"); \\boxed{...}; a block of code; "the answer is ...", "Answer: ...", "#### ..."; a short bold text, as LiveBench
asks. A response may hold two: the one in the first of these forms, and the one that stands last, such as "the answer is 5"
after a box in the working; words ("the answer is clear") are none beside a surer form. Answers are compared without case,
blanks, markup, differences of Unicode form and mathematical delimiters; Python code without comments, docstrings and layout.
"""

import ast
import functools
import re
import warnings
from collections.abc import Iterable

from equipoise.data.text import unified

LONGEST = 120  # characters of a stated answer; what is longer is an argument
LONGEST_BOXED = 1000  # so that a text of braces without end takes no time to speak of

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#-]*)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_REPEATED = re.compile(r"(?<![A-Za-z])([A-Z])\1{3,}(?![A-Za-z])")
_BOXED = re.compile(r"\\boxed\s*\{")
_STATED = re.compile(
    r"(?:\banswers?\b[^.:\n]{0,60}?(?:\b(?:is|are|be)\b|:)|\bfinal answer\b[*_ ]*\n|^####)[\s:*_]*(?P<answer>[^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_BOLD = re.compile(rf"(?<!\*)\*{{2,3}}([^*\n]{{1,{LONGEST}}})\*{{2,3}}([ \t]{{0,3}}:)?")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\(?:left|right|displaystyle)\b|\\[()\[\],;!]|[*_`$\"'“”\s]|(?<=\d),(?=\d{3}\b)")
_VALUE = re.compile(r"[a-z]|[-+]?\d[\d.,/:]*[a-z%°$€£]{0,12}")  # a choice, or a number with its unit
_PLAIN_BLOCKS = ("", "text", "plaintext", "txt", "markdown", "md", "latex")
_STATEMENTS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.For,
    ast.While,
)


def final_answer(text: str) -> str | None:
    """The terminal answer of a response in a form to compare; None where none of the forms is found."""
    stated, bold = _answers(text)
    return stated[-1] if stated else bold[-1] if bold else None


def same_final_answer(before: str, after: str) -> bool | None:
    """Whether a rewrite kept the final answer; None where there is none to keep.

    Bold texts are also headings and emphasis: one that was an answer must be kept in bold or stated, new ones may join it.
    """
    (first, bold), (second, later_bold) = _answers(before), _answers(after)
    if not first and not bold:
        return False if second else None
    if first and second:
        return set(first) <= set(second) and second[-1] in first
    kept = first[-1] if first else bold[-1]
    return kept in second or kept in later_bold


@functools.lru_cache(maxsize=4096)  # an original is compared with each of its rewrites
def _answers(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The answer in the first form but bold that is found and, where it is another, the last; all short bold texts."""
    text = unified(text)
    if (code := _python(text)) is not None:
        return (code,), ()
    blocks = [(match.start(), code) for match in _FENCE.finditer(text) if (code := _code(match)) is not None]
    prose = _FENCE.sub(lambda match: match[0] if _code(match) is None else "\n" * len(match[0]), text)
    bold = [match[1] for match in _BOLD.finditer(prose) if not match[1].rstrip().endswith(":") and not match[2]]
    forms = [
        _plainly((match.start(), match[1]) for match in _REPEATED.finditer(prose)),
        _plainly((match.start(), _braced(prose, match.end())) for match in _BOXED.finditer(prose)),
        blocks,
        _plainly((match.start("answer"), _sentence(match["answer"])) for match in _STATED.finditer(prose)),
    ]
    if any(forms[:-1]):
        forms[-1] = [each for each in forms[-1] if _VALUE.fullmatch(each[1])]
    lasts = [form[-1] for form in forms if form]
    stated = tuple(dict.fromkeys(answer for _, answer in (lasts[0], max(lasts)))) if lasts else ()
    return stated, tuple(plain for each in bold if (plain := _plain(each)))


def _plainly(answers: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(position, plain) for position, answer in answers if (plain := _plain(answer))]


def _sentence(text: str) -> str:
    """What is stated: its bold part if it has one, else up to the end of its sentence; "" for a list or an argument."""
    if text.startswith("- ") or text.rstrip().endswith(":"):
        return ""
    parts = re.split(r"\*\*+", text)
    if len(parts) > 1:
        # An even number of marks: the first bold part; an odd number: the first mark closes what opened before the match.
        return parts[1 if len(parts) % 2 else 0]
    sentence = re.split(r"(?<=[^\d\s])[.!;](?:\s|$)|(?<=\d)\.(?:\s|$)", text.strip(), maxsplit=1)[0]
    return sentence if len(sentence) <= LONGEST else ""


def _plain(text: str) -> str:
    text = _MARKUP.sub("", _TEXT.sub(r"\1", text)).strip(".,;:!").casefold()
    if option := re.match(r"^(?:option|choice)?\(([a-z])\)", text) or re.match(r"^(?:option|choice)([a-z])$", text):
        return option[1]  # "(B) 2.03" and "B" are one choice
    if repeated := re.fullmatch(r"([a-z])\1{3,}", text):
        return repeated[1]
    return text


def _braced(text: str, start: int) -> str:
    """What stands between an open brace before `start` and the brace that closes it."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start : start + LONGEST_BOXED]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : start + brace.start()]
    return ""


def _code(block: re.Match[str]) -> str | None:
    """A fenced block as code to compare: Python by its syntax, another named language without its layout, else None."""
    language, body = block[1].lower(), block[2]
    if (code := _python(body)) is not None:
        return code
    return " ".join(body.split()) if language not in _PLAIN_BLOCKS else None


def _python(text: str) -> str | None:
    """Python without comments, docstrings and layout; None for what is no Python or has no statement worth the name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip())
        nodes = list(ast.walk(tree))
        if not any(isinstance(node, _STATEMENTS) for node in nodes):
            return None
        for node in nodes:
            documented = isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if documented and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        return ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
