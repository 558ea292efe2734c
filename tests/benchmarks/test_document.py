"""Measured parts of documents."""

from __future__ import annotations

import pytest

from document import MeasuredPart


@pytest.fixture
def part(tmp_path):
    return MeasuredPart(tmp_path / "document.md", "<!-- start -->", "<!-- end -->")


def test_only_the_measured_part_is_replaced(part):
    text = f"before\n{part.start}\nold\n{part.end}\nafter\n"
    once = part.replaced(text, "new")
    assert once == f"before\n{part.start}\n\nnew\n\n{part.end}\nafter\n"
    assert part.replaced(once, "new") == once


def test_shows_what_was_written(part):
    part.document.write_text(f"{part.start}{part.end}")
    assert not part.shows("new")
    part.update("new")
    assert part.shows("new")
    assert not part.shows("newer")


def test_a_document_without_the_lines_is_refused(part):
    with pytest.raises(SystemExit, match="expected the lines"):
        part.replaced(f"{part.start} but no end", "new")
