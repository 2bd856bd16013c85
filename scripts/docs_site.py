"""What the site draws from the package itself, as hooks of MkDocs: the API reference, the gallery, the map of the house.

Nothing of it is stored, so that nothing of it can be out of date. A page asks for its part with a comment,
`<!-- gallery -->` or `<!-- house -->`; a link to a source file, which a reader of the repository follows to that file, leads
to the file's page of the reference here. The build fails when a public name has no place in the reference (`on_post_build`).
"""

import ast
import html
import importlib
import json
import posixpath
import re
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import equipoise
from equipoise.core.registry import Registry
from equipoise.study import registry
from equipoise.study.summary_text import published, published_counts, tally

SOURCE = Path(equipoise.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
VERDICTS = SOURCE / "studies" / "verdicts.json"
FORMULAS = "## Formulas"  # the section of a system's page that the gallery collects
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SOURCE_LINK = re.compile(r"\]\((?:\.\./)+src/equipoise/([\w/]+)\.py\)")


@dataclass(frozen=True)
class Module:
    """A module of the package as its source tells it: nothing is imported."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def is_package(self) -> bool:
        """Whether it is the __init__.py of a folder."""
        return self.path.name == "__init__.py"

    @property
    def page(self) -> str:
        """Its page in the reference, as a path within docs."""
        path = "/".join(["reference", *self.name.split(".")[1:]])
        return f"{path}/index.md" if self.is_package else f"{path}.md"

    @property
    def defined(self) -> dict[str, ast.AST]:
        """Public functions and classes that stand in it, by name; of overloads the last, which has the body."""
        kinds = (*FUNCTIONS, ast.ClassDef)
        return {node.name: node for node in self.tree.body if isinstance(node, kinds) and node.name[0] != "_"}

    @property
    def offered(self) -> dict[str, str]:
        """What a package offers under its own name, and the module that each comes from."""
        blocks = [node for node in self.tree.body if isinstance(node, ast.If)]
        imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
        return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def modules() -> dict[str, Module]:
    """Every public module by name, packages before what is in them."""
    found = []
    for path in SOURCE.rglob("*.py"):
        parts = ["equipoise", *path.relative_to(SOURCE).with_suffix("").parts]
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found.append(Module(".".join(parts), path))
    return {module.name: module for module in sorted(found, key=lambda module: module.name)}


def summary(node: Any) -> str:
    """The first line of a docstring, "" where there is none."""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def public_names(known: Mapping[str, Module]) -> Iterator[str]:
    """The full name of every public function and class, where it is defined."""
    for module in known.values():
        yield from (f"{module.name}.{name}" for name in module.defined)


def undocumented(known: Mapping[str, Module]) -> list[str]:
    """Public modules, functions and classes without a docstring; of classes that a package offers, methods too."""
    left = [module.name for module in known.values() if not summary(module.tree)]
    front = {f"{home}.{name}" for module in known.values() for name, home in module.offered.items()}
    for module in known.values():
        for name, node in module.defined.items():
            full = f"{module.name}.{name}"
            left += [full] * (not summary(node))
            if full in front and isinstance(node, ast.ClassDef):
                methods = (each for each in node.body if isinstance(each, FUNCTIONS) and each.name[0] != "_")
                left += [f"{full}.{each.name}" for each in methods if not summary(each)]
    return left


def reference(known: Mapping[str, Module]) -> dict[str, str]:
    """Path within docs -> text of every page of the reference."""
    return {
        module.page: _package_page(module, known) if module.is_package else _module_page(module)
        for module in known.values()
    }


def _module_page(module: Module) -> str:
    return f"# `{module.name}`\n\n::: {module.name}\n"


def _package_page(package: Module, known: Mapping[str, Module]) -> str:
    lines = [
        f"# `{package.name}`",
        "",
        f"::: {package.name}",
        "    options: {members: " + json.dumps(list(package.defined)) + "}",
        "",
    ]
    here = posixpath.dirname(package.page)
    rows = []
    for name, home in sorted(package.offered.items()):
        if below := known.get(f"{home}.{name}"):  # a package or a module under its own name
            link, text = posixpath.relpath(below.page, here), summary(below.tree)
        elif home in known and not name.startswith("_"):
            node = known[home].defined.get(name)
            link = f"{posixpath.relpath(known[home].page, here)}#{home}.{name}"
            text = "A constant." if node is None else summary(node)
        else:
            continue
        rows.append(f"| [`{name}`]({link}) | {_cell(text)} |")
    if rows:
        lines += [
            f"## What `from {package.name} import ...` offers",
            "",
            "| name | what it is |",
            "|---|---|",
            *rows,
            "",
        ]
    below = [each for each in known.values() if each.name.rpartition(".")[0] == package.name]
    if below:
        lines += ["## Modules", "", "| module | what it holds |", "|---|---|"]
        lines += [
            f"| [`{each.name}`]({posixpath.relpath(each.page, here)}) | {_cell(summary(each.tree))} |" for each in below
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")


def reference_nav(known: Mapping[str, Module]) -> list[Any]:
    """The reference's part of the navigation: packages, and in each its modules."""
    packages = [each for each in known.values() if each.is_package and each.name.count(".") == 1]
    nav: list[Any] = [{"All packages": known["equipoise"].page}]
    for package in packages:
        below = [each for each in known.values() if each.name.startswith(f"{package.name}.")]
        short = [{each.name.removeprefix(f"{package.name}."): each.page} for each in below]
        nav.append({package.name: [package.page, *short]})
    alone = [each for each in known.values() if not each.is_package and each.name.count(".") == 1]
    return nav + [{each.name: each.page} for each in alone]


@dataclass(frozen=True)
class Method:
    """A row of a system's table of formulas: the method's name, its formula and where and how it is had, in Markdown."""

    name: str
    formula: str
    module: str
    command: str


def methods_of(page: str) -> list[Method]:
    """The rows of the tables in a page's section of formulas."""
    _, _, section = page.partition(f"\n{FORMULAS}\n")
    section = section.partition("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [Method(row[0].strip("`"), *row[1:]) for row in cells if row[0].startswith("`")]


def registries(known: Mapping[str, Module]) -> Iterator[Registry[Any]]:
    """The registries of the package: what can be chosen by name."""
    for module in known.values():
        for node in module.tree.body:
            target = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and "Registry[" in ast.unparse(node):
                yield getattr(importlib.import_module(module.name), target.id)


def gallery(docs: Path = DOCS) -> str:
    """A table a system: a row a method, with what it trades, formula, module, command and what its study says."""
    verdicts = published(VERDICTS)
    parts = []
    for name, studies in registry.systems().items():
        declaration = registry.load(name)
        text = (docs / "systems" / f"{name}.md").read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        parts += [f"## [{title}](systems/{name}.md)", "", f"Trades **{declaration.trades}** · {declaration.paper}", ""]
        judged: dict[str, list[str]] = {}
        for each in studies:
            entry = verdicts.get(each)
            told = tally(published_counts(entry)) if entry else "none yet"
            parts.append(f"- `equipoise study run {each}` · [verdicts](results/{each}/report.html): {told}")
            for arm, said in _judged(registry.load(each).build().claims, entry).items():
                judged.setdefault(arm, []).extend(said if each == name else [f"{one} (`{each}`)" for one in said])
        parts += [
            "",
            "| method | trades | formula | module | command | verdict |",
            "|---|---|---|---|---|---|",
        ]
        for method in methods_of(text):
            module = method.module.replace("](../../", "](../")
            said = ", ".join(judged.get(method.name, ())) or "no claim about it"
            parts.append(
                f"| `{method.name}` | {declaration.trades} | {method.formula} | {module} | {method.command} | {said} |"
            )
        parts.append("")
    return "\n".join(parts)


def _judged(claims: Sequence[Any], entry: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Arm -> what was said of each claim about it, "undecided against `sum`", and of each in which it is the rival."""
    said = {claim["text"]: claim["verdict"] for claim in entry["claims"]} if entry else {}
    found: dict[str, list[str]] = {}
    for claim in claims:
        arms = claim.references().arms
        verdict = said.get(claim.text, "exploratory")
        if verdict != "exploratory" and arms:
            against = " and ".join(f"`{rival}`" for rival in arms[1:])
            found.setdefault(arms[0], []).append(f"{verdict} against {against}" if against else verdict)
            for rival in arms[1:]:
                found.setdefault(rival, []).append(f"of `{arms[0]}` against it: {verdict}")
    return found


def layers(project: Mapping[str, Any]) -> tuple[list[list[str]], dict[str, tuple[int, int]]]:
    """The rows of the house from the import contracts, top first, and the rooms beside it: name -> first and last row."""
    contracts = project["tool"]["importlinter"]["contracts"]
    (stack,) = [each for each in contracts if each["type"] == "layers"]
    rows = [re.findall(r"\w+", layer) for layer in stack["layers"]]
    inside = {name for row in rows for name in row}
    imports: dict[str, set[str]] = {}  # room -> what it may not import
    imported: dict[str, set[str]] = {}  # room -> what may not import it
    for contract in (each for each in contracts if each["type"] == "forbidden"):
        sources = {each.removeprefix("equipoise.") for each in contract["source_modules"]}
        targets = {each.removeprefix("equipoise.") for each in contract["forbidden_modules"]}
        for source in sources:
            imports.setdefault(source, set()).update(targets)
        for target in targets:
            imported.setdefault(target, set()).update(sources)
    beside = {}
    for name in imports.keys() - inside:
        apart = imports[name] & imported.get(name, set())
        spanned = [index for index, row in enumerate(rows) if apart.issuperset(row)]
        beside[name] = (spanned[0], spanned[-1])
    return rows, beside


def house(project: Mapping[str, Any], known: Mapping[str, Module], link: Any) -> str:
    """The house as SVG: a room may import what stands below it. link: from a module's page to an address."""
    rows, beside = layers(project)
    step, width, side = 46, 560, 150
    drawn = []

    def room(name: str, x: float, y: float, wide: float, high: float) -> None:
        module = known[f"equipoise.{name}"]
        title = html.escape(summary(module.tree))
        drawn.append(
            f'<a href="{html.escape(link(module.page))}"><title>{title}</title>'
            f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="4"/>'
            f'<text x="{x + wide / 2:g}" y="{y + high / 2 + 5:g}">{name}</text></a>'
        )

    for index, row in enumerate(rows):
        each = (width - 8 * (len(row) - 1)) / len(row)
        for place, name in enumerate(row):
            room(name, place * (each + 8), index * step, each, step - 8)
    for name, (first, last) in beside.items():
        room(name, width + 16, first * step, side - 16, (last - first + 1) * step - 8)
    size = f'viewBox="-1 -1 {width + side + 2} {len(rows) * step - 6}"'
    return f'<svg class="house" {size} role="img" aria-label="The layers of the house">{"".join(drawn)}</svg>'


# The hooks of MkDocs, in the order in which it calls them.


def on_config(config: Any) -> Any:
    """The reference goes into the navigation where `Reference: reference/` stands."""
    for entry in config.nav:
        if entry.get("Reference") == "reference/":
            entry["Reference"] = reference_nav(modules())
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """The pages of the reference."""
    from mkdocs.structure.files import File

    for page, text in reference(modules()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """What is drawn goes in; links to sources lead to their page of the reference."""
    if "<!-- gallery -->" in markdown:
        markdown = markdown.replace("<!-- gallery -->", gallery(Path(config.docs_dir)))
    if "<!-- house -->" in markdown:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        drawn = house(project, modules(), lambda uri: files.get_file_from_path(uri).url_relative_to(page.file))
        markdown = markdown.replace("<!-- house -->", drawn)
    here = posixpath.dirname(page.file.src_uri)

    def linked(found: re.Match[str]) -> str:
        parts = found[1].removesuffix("/__init__").split("/")
        return f"]({posixpath.relpath(modules()['.'.join(['equipoise', *parts])].page, here or '.')})"

    return SOURCE_LINK.sub(linked, markdown)


def on_post_build(*, config: Any) -> None:
    """Raises when a public name is nowhere in the built reference, or a page would fetch something from elsewhere."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    listed = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    there = {line.split(" ", 1)[0] for line in listed.splitlines()}
    if left := sorted(set(public_names(modules())) - there):
        raise PluginError(f"Public names without a place in the reference: {', '.join(left)}")
    fetched = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="?https?://[^">\s]+')
    pages = (page for page in site.rglob("*.html") if "results" not in page.relative_to(site).parts)
    if away := sorted({found for page in pages for found in fetched.findall(page.read_text(encoding="utf-8"))}):
        raise PluginError(f"The site must open without a network, but it fetches: {'; '.join(away)}")
