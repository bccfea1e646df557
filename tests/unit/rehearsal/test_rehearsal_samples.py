"""The pictures of a rehearsal without a dataset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image
from rehearsal_programs import ROOT


def draw(folder: Path) -> str:
    code = (
        "import sys; from pathlib import Path; from wan_train.rehearsal.example_pictures import draw; "
        f"draw(Path({str(folder)!r})); print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_eight_different_captioned_pictures_the_same_every_time_and_without_torch(tmp_path: Path) -> None:
    assert draw(tmp_path / "one") == "False"
    draw(tmp_path / "two")
    pictures = sorted((tmp_path / "one").glob("*.png"))
    assert pictures[0].name == "01-red-circle.png"
    captions = {path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in pictures}
    assert len(pictures) == len(captions) == 8
    assert "" not in captions
    shapes = set()
    for path in pictures:
        with Image.open(path) as one, Image.open(tmp_path / "two" / path.name) as two:
            assert one.tobytes() == two.tobytes()
            assert max(one.size) == 512
            assert len(one.getcolors(maxcolors=1 << 20) or range(1 << 20)) > 20
            shapes.add(one.size)
    assert len(shapes) >= 5
