"""Every snippet of the documentation's pages runs, and prints what the page says it prints."""

import re
import runpy
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["services.md", "stores.md", "extending.md"]
"""Pages whose snippets stand for themselves. Others have tests of their own."""
SNIPPET = re.compile(r"```python\n# (\w+\.py)\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
FOUND = [
    pytest.param(code, output, id=f"{page}:{name}")
    for page in PAGES
    for name, code, output in SNIPPET.findall((DOCS / page).read_text())
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(("code", "output"), FOUND)
def test_snippet(code, output, tmp_path, monkeypatch, capsys, broker_environment):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(code)
    before = set(threading.enumerate())
    runpy.run_path("snippet.py")
    assert capsys.readouterr().out == output
    assert set(threading.enumerate()) <= before, "the snippet leaves threads behind"


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_is_run(page):
    text = (DOCS / page).read_text()
    assert len(re.findall("```python", text)) == len(SNIPPET.findall(text))


def test_getting_started_runs(broker_environment, tmp_path, monkeypatch):
    """The learner and the actor of the page, each in a thread, find each other and end."""
    monkeypatch.chdir(tmp_path)
    snippets = {n: c for n, c, _ in SNIPPET.findall((DOCS / "getting-started.md").read_text())}
    assert set(snippets) == {"learner.py", "actor.py"}
    failures = []

    def run(name):
        (tmp_path / name).write_text(snippets[name])
        try:
            runpy.run_path(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in snippets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target
    for path in re.findall(
        r"`((?:examples|docs|broker|tests|agentlace)/[\w./-]*)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path
