"""Measure how plain the prose of README.md and docs/ is, and name the sentences that are not.

Tables, code, headings and captions are no prose. The limits are those that nine code bases of the
field keep to.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import shared
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.errors import MtkdError

ROOT = Path(__file__).parents[2]
WORDS = 28  # of nine sentences in ten
MARKS = 1.3  # commas and colons, mean
NUMBERS = 1  # in a sentence of docs/results
FEW = 5  # sentences: of fewer there is no ninth tenth

_END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_`]*[A-Z0-9])")
_ABBREVIATED = re.compile(r"\b(e\.g|i\.e|et al|cf|vs|approx)\. ")
_NUMBER = re.compile(r"(?<![\w.-])[+-]?\d[\d,.]*(?!\w)")
# What counts nothing: asides in brackets, years, references to sections, equations, tables, commits
# and seeds, versions of libraries, and the second number of a range.
_REFERENCE = re.compile(
    r"\([^()]*\)|\b(?:19|20)\d\d\b|"
    r"\b(?:torch|Python|CUDA|Runtime|OpenVINO|NNCF) \d[\d.]*\d|"
    r"(?<=\d) (?:to|\.\.) [+-]?\d[\d.]*|"
    r"\b(?:[Ss]ections?|Equations?|Tables?|seeds?|commit|steps?) \d[\d.]*"
    r"(?:(?: to | and |, )\d[\d.]*)*"
)


@dataclass(frozen=True)
class Sentence:
    """A sentence of a page.

    Attributes:
        line: of its paragraph, from 1.
        text: without markup; code is one word.
    """

    line: int
    text: str

    @property
    def words(self) -> int:
        """Words, of which a piece of code is one."""
        return len(re.findall(r"[\w'%./-]*\w[\w'%./-]*", self.text))

    @property
    def marks(self) -> int:
        """Commas and colons."""
        return len(re.findall(r"[,:](?=\s|$)", self.text))

    @property
    def numbers(self) -> int:
        """Numbers that are no part of a name, a year or a reference."""
        return len(_NUMBER.findall(_REFERENCE.sub("", self.text)))


def main(
    pages: Annotated[
        list[Path] | None, typer.Argument(help="Which; README.md and all of docs/ if none.")
    ] = None,
) -> None:
    """Fail if a page is hard to read, and say where."""
    paths = pages or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    problems: list[str] = []
    for path in paths:
        problems += problems_of(path.resolve(), sentences(path.read_text()))
    if problems:
        raise MtkdError("\n".join(["pages that are hard to read:", *problems]))


def problems_of(path: Path, prose: Sequence[Sentence]) -> list[str]:
    """One line for each limit that a page breaks, with its worst sentences."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    problems = []
    if len(prose) >= FEW:
        longest = sorted(prose, key=lambda sentence: sentence.words)
        ninth = longest[int(0.9 * (len(prose) - 1))].words
        if ninth > WORDS:
            worst = _places(longest[::-1])
            problems.append(f"{name}: {ninth} words in a long sentence, more than {WORDS}: {worst}")
        mean = sum(sentence.marks for sentence in prose) / len(prose)
        if mean > MARKS:
            worst = _places(sorted(prose, key=lambda sentence: -sentence.marks))
            problems.append(f"{name}: {mean:.2f} commas and colons, more than {MARKS}: {worst}")
    if "results" in path.parts:
        crowded = [s for s in prose if s.numbers > NUMBERS]
        problems += [f"{name}:{s.line}: {s.numbers} numbers: {s.text}" for s in crowded]
    return problems


def _places(worst: Sequence[Sentence]) -> str:
    return ", ".join(f"line {sentence.line}" for sentence in worst[:3])


def sentences(page: str) -> list[Sentence]:
    """The sentences of a page's paragraphs and lists."""
    found = []
    for line, text in _paragraphs(MarkdownIt("commonmark").enable("table").parse(page)):
        whole = _ABBREVIATED.sub(r"\1 ", text)
        found += [Sentence(line, part) for part in _END.split(whole) if part.strip()]
    return found


def _paragraphs(tokens: Sequence[Token]) -> Iterator[tuple[int, str]]:
    for opening, inline in pairwise(tokens):
        if opening.type == "paragraph_open" and inline.map:
            text = "".join(map(_text, inline.children or []))
            if not _is_caption(inline):
                yield inline.map[0] + 1, text


def _text(token: Token) -> str:
    if token.type == "code_inline":
        return "Code"  # may begin a sentence
    if token.type in ("softbreak", "hardbreak"):
        return " "
    return token.content if token.type == "text" else ""


def _is_caption(inline: Token) -> bool:
    """Whether a paragraph is a picture, or set in italics as a whole."""
    content = inline.content.strip()
    return content.startswith("![") or (content.startswith("*") and not content.startswith("**"))


if __name__ == "__main__":
    shared.run(main)
