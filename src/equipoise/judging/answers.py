"""The answer that a response ends with, so that a rewrite that changes it is noticed: its label would no longer hold.

Forms, the first that is found, at the last place where it stands: nothing but code; one letter repeated, as JudgeBench asks
of choices ("AAAAA"); \\boxed{...}; a block of code; "the answer is ...", "Answer: ...", "#### ..."; a short bold text, as
LiveBench asks. Answers are compared without case, blanks, markup and mathematical delimiters; Python code without comments,
docstrings and layout.
"""

import ast
import functools
import re
import warnings

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


@functools.lru_cache(maxsize=4096)  # an original is compared with each of its rewrites
def final_answer(text: str) -> str | None:
    """The terminal answer of a response in a form to compare; None where none of the forms is found."""
    stated, bold = _answers(text)
    return stated if stated is not None else bold[-1] if bold else None


def same_final_answer(before: str, after: str) -> bool | None:
    """Whether a rewrite kept the final answer; None where there is none to keep.

    Bold texts are also headings and emphasis: one that was an answer must be kept in bold or stated, new ones may join it.
    """
    (first, bold), (second, later_bold) = _answers(before), _answers(after)
    if first is None and not bold:
        return None if second is None else False
    if first is not None and second is not None:
        return first == second
    kept = first if first is not None else bold[-1]
    return kept == second or kept in later_bold


def _answers(text: str) -> tuple[str | None, list[str]]:
    """The answer in the first form but bold that is found, and all short bold texts of the prose."""
    if (code := _python(text)) is not None:
        return code, []
    blocks = [(code, match) for match in _FENCE.finditer(text) if (code := _code(match)) is not None]
    prose = text
    for _, match in reversed(blocks):
        prose = prose[: match.start()] + prose[match.end() :]
    bold = [match[1] for match in _BOLD.finditer(prose) if not match[1].rstrip().endswith(":") and not match[2]]
    forms = (
        _plainly(_REPEATED.findall(prose)),
        _plainly([_braced(prose, match.end()) for match in _BOXED.finditer(prose)]),
        [code for code, _ in blocks],
        _plainly([_sentence(match["answer"]) for match in _STATED.finditer(prose)]),
    )
    return next((form[-1] for form in forms if form), None), _plainly(bold)


def _plainly(answers: list[str]) -> list[str]:
    return [plain for each in answers if (plain := _plain(each))]


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
