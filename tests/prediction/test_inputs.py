"""What a glob may say."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffcli.prediction.inputs import plan


def test_a_glob_that_repeats_its_stars_takes_no_longer(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in "abcdefgh":
        folder /= name
        folder.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / "x.png")
    jobs = plan([f"{tmp_path}/in/{'**/' * 40}*.png"], output=tmp_path / "out", references=None)
    assert [job.image for job in jobs] == [folder / "x.png"]
