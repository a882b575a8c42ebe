"""Every snippet of docs/robots.md runs, each as a program of its own, beside the page's robot."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.support import Program

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "robots.md").read_text()
SNIPPETS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))
SAYS = {
    "watch.py": r"True True True \(480, 640, 3\)",
    "images.py": r"\(224, 224, 3\) \[(19\d|20\d) +[23]\d +[23]\d\] 0\n1 True True",
    "drive.py": r"\{'moved': 1\} None ControlHeld\n\{'moved': 3\}",
}
HELD = "no action for 300 ms: the arm holds its position"

pytest.importorskip("cv2")


def test_every_snippet_is_run():
    assert set(SNIPPETS) == {"robot.py", *SAYS}
    assert len(re.findall("```python", TEXT)) == len(SNIPPETS)


def test_the_snippets(tmp_path, broker_environment, monkeypatch):
    for name, source in SNIPPETS.items():
        (tmp_path / name).write_text(source)
    source = f"import runpy, sys; runpy.run_path({str(tmp_path / 'robot.py')!r}, {{}}, '__main__')"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Program(source, broker=broker_environment) as robot:
        for name, says in SAYS.items():
            command = [sys.executable, str(tmp_path / name)]
            found = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert found.returncode == 0, found.stderr
            assert re.fullmatch(says, found.stdout.strip()), (name, found.stdout)
        robot.line(HELD)
