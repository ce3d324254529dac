"""What counts as plain, on short pages."""

from pathlib import Path

import pytest
from plain_english import problems_of, sentences

PAGE = Path("page.md")
RESULTS = Path("docs/results/page.md")


def problems(text, path=PAGE):
    return problems_of(path, sentences(text))


def test_prose_is_cut_into_sentences_with_their_lines():
    page = "# A heading, with a comma\n\nOne is `a, b`. Two et al. (2021) say\nso.\n\n- Three.\n"
    assert [(s.line, s.text) for s in sentences(page)] == [
        (3, "One is Code."),
        (3, "Two et al (2021) say so."),
        (6, "Three."),
    ]


def test_tables_code_and_pictures_are_no_prose():
    parts = ["| a, b |\n|---|\n| d: e |", "    mtkd x, y", "![a, b](c.jpg)", "*A caption, set so.*"]
    assert sentences("\n\n".join(parts)) == []


def test_short_sentences_pass():
    assert problems("A student learns. " * 9) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{'word ' * 29}. " * 9, "29 words in a long sentence"),
        ("A, b, c: d. " * 9, "3.00 commas and colons"),
    ],
)
def test_what_is_hard_to_read_is_named(text, says):
    (problem,) = problems(text.replace("word", "Word", 1).replace(". w", ". W"))
    assert says in problem
    assert "line 1" in problem


def test_results_have_one_number_to_a_sentence():
    assert problems("Dice is 67.3 of 100.", PAGE) == []
    (problem,) = problems("Dice is 67.3 and not 66.", RESULTS)
    assert problem.startswith("docs/results/page.md:1: 2 numbers")


@pytest.mark.parametrize(
    "text",
    [
        "MiniNetv2 and SegFormer-B0 gain 4.4 on 640x512.",
        "Shu et al. (2021) and section 3.2 say 4.",
        "Equations 1 to 3 have one number, 30.",
    ],
)
def test_names_years_and_references_are_no_numbers(text):
    assert problems(text, RESULTS) == []
