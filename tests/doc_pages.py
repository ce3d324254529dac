"""What stands on a Markdown page: blocks of code, commands, inline code, headings and links, each
with its line.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT
from markdown_it import MarkdownIt

CODE_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"#+ +(.+)")
PROMPT = "$ "


@dataclass(frozen=True)
class Page:
    """A page, by its path from the root of the repository."""

    name: str
    text: str


@dataclass(frozen=True)
class Piece:
    """A part of a page and the line, from 1, on which it begins."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        first, *_ = self.text.splitlines()
        without_comment, *_ = first.split("  ")
        return f"{self.page}:{self.line}: {without_comment}"


@dataclass(frozen=True)
class Block(Piece):
    """A block of code.

    Attributes:
        kind: python, yaml, commands, session (commands after a prompt, with their output), files or
            text.
    """

    kind: str


def read_pages() -> list[Page]:
    """README.md and the other pages at the root, and every page below docs/."""
    paths = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    return [read_page(path) for path in paths]


def read_page(path: Path) -> Page:
    """One page of the repository."""
    return Page(str(path.relative_to(ROOT)), path.read_text())


def blocks(page: Page, kind: str | None = None) -> list[Block]:
    """The blocks of code, fenced or indented, of one kind or of all."""
    found = []
    for token in _code(page):
        first = token.map[0] + (2 if token.type == "fence" else 1)
        found.append(
            Block(page.name, first, token.content, _kind(token.info.strip(), token.content))
        )
    return [block for block in found if kind in (None, block.kind)]


def _code(page):
    """The parser's tokens of fenced and indented blocks that are not empty."""
    tokens = MarkdownIt("commonmark").parse(page.text)
    return [
        token for token in tokens if token.type in ("fence", "code_block") and token.content.strip()
    ]


def _kind(language: str, text: str) -> str:
    if language in ("python", "yaml", "text"):
        return language
    assert language in ("", "sh", "bash", "console"), (
        f"{language}: nobody checks blocks of this language"
    )
    if any(line.startswith(PROMPT) for line in text.splitlines()):
        return "session"
    first = text.split()[0]
    if first.startswith("#!"):
        return "script"  # for a cluster: test_environment.py runs it
    if first.endswith(":"):
        return "yaml"
    if first.endswith("/"):
        return "files"
    return "commands"


def commands(page: Page) -> list[Piece]:
    """Every command of the blocks; one that goes on after a backslash is one."""
    found = []
    for block in blocks(page):
        if block.kind in ("commands", "session"):
            found += _commands_of(block)
    return found


def _commands_of(block: Block) -> list[Piece]:
    found = []
    begun: Piece | None = None
    for number, line in enumerate(block.text.splitlines(), block.line):
        if begun is not None:
            begun = Piece(block.page, begun.line, f"{begun.text} {line.strip()}")
        elif block.kind == "commands":
            begun = Piece(block.page, number, line.strip())
        elif line.startswith(PROMPT):
            begun = Piece(block.page, number, line.removeprefix(PROMPT).strip())
        else:
            continue
        if begun.text.endswith("\\"):
            begun = Piece(block.page, begun.line, begun.text.removesuffix("\\").strip())
        else:
            found.append(begun)
            begun = None
    return [piece for piece in found if piece.text and not piece.text.startswith("#")]


def code_spans(page: Page) -> list[Piece]:
    """Every `inline code`, without its line breaks."""
    return [_join_lines(piece) for piece in _find(CODE_SPAN, page.name, _prose(page))]


def _join_lines(piece: Piece) -> Piece:
    return Piece(piece.page, piece.line, " ".join(piece.text.split()))


def links(page: Page) -> list[Piece]:
    """The targets of all links and pictures that are not on the web."""
    text = CODE_SPAN.sub(_only_line_breaks, _prose(page))
    return [piece for piece in _find(LINK, page.name, text) if "://" not in piece.text]


def _only_line_breaks(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _find(pattern: re.Pattern[str], page: str, text: str) -> list[Piece]:
    return [
        Piece(page, text.count("\n", 0, match.start()) + 1, match[1])
        for match in pattern.finditer(text)
    ]


def anchors(page: Page) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    seen: Counter[str] = Counter()
    found = set()
    for line in _prose(page).splitlines():
        if heading := HEADING.fullmatch(line):
            name = _anchor(heading[1])
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def _anchor(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def _prose(page: Page) -> str:
    """The page with its blocks of code left blank, so that lines keep their numbers."""
    lines = page.text.splitlines()
    for token in _code(page):
        first, end = token.map
        lines[first:end] = [""] * (end - first)
    return "\n".join(lines)
