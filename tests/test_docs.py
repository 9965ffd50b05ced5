"""Links and pictures of the documentation exist, and the README stays short."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("checkpoints/**/README.md"),
    ]
)
README_LINES = 120


def links_of(text):
    """Targets of the links and pictures of a markdown text, without those in code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4}.*$|`[^`]*`", "", text, flags=re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors_of(text):
    """Anchors of the headings of a markdown text, as mkdocs and GitHub write them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\x00-\x7f]|[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def broken_links(page):
    """Relative links of a page whose file or heading is not there."""
    for target in links_of(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page if not path else page.parent / path
        if not file.exists():
            yield f"{target}: no such file"
            continue
        headings = anchors_of(file.read_text(encoding="utf-8")) if anchor else {anchor}
        # mkdocs checks the anchors of the API reference, which are names of the package.
        if anchor not in headings and not anchor.startswith("dr2pipe."):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_pictures_exist(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[a](#one) [b](other.md) ![c](c.png) `[d](d.md)`\n    [e](e.md)\n")
    found = list(broken_links(page))
    assert found == [
        "#one: no such heading",
        "other.md: no such file",
        "c.png: no such file",
    ]


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES
