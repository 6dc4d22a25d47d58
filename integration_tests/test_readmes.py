"""Every Python block of every README runs, in order, from a place of its own."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.parent.name)
def test_the_code_of_a_readme_runs(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), scope)
    assert capsys.readouterr().out


def test_the_front_page_shows_code():
    assert blocks(ROOT / "README.md")
