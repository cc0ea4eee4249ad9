"""`diff push`: a trained model under a name on the hub, with its model card."""

import json as json_module
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from diffcli.errors import DiffError
from diffcli.runs.folder import REPORT
from diffcli.runs.hub import PREFIX, check_access, parse_repo, publish
from diffcli.runs.model_card import write_card
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime import console


class Export(Protocol):
    """What writes the folder that is published, and returns what is told of it."""

    def __call__(self, trained: OpenRun, output: Path, *, with_backbone: bool) -> dict[str, Any]: ...


def run(
    run: Path,
    *,
    repo: str,
    export: Export,
    private: bool = False,
    with_backbone: bool = False,
    licence: str | None = None,
    json: bool = False,
) -> None:
    """Export a run into a temporary folder, write its card and make that the content of the repository.

    Args:
        run: a run folder, an exported folder or a checkpoint file.
        repo: owner/name, or owner/name@revision.
        export: writes the exported folder.
        private: a new repository is private.
        with_backbone: publish the frozen diffusion model as well (its licence must allow that).
        licence: of the published weights; None takes the diffusion model's.
        json: print what was published as JSON on stdout.

    Raises:
        CheckpointError: no trained weights there.
        DiffError: see `publish`.
    """
    target = parse_repo(repo)
    check_access(target)
    trained = open_run(run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / target.name.partition("/")[2]
        facts = export(trained, folder, with_backbone=with_backbone)
        report = _report(run)
        if report is not None:
            shutil.copyfile(run / REPORT, folder / REPORT)
        card = write_card(
            repo=str(target),
            config=trained.config,
            trained_on=trained.config.data.train if _knows_its_data(trained) else None,
            facts=facts,
            report=report,
            licence=licence,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        place = publish(folder, target, private=private)
    console.say(f"published {run} as {PREFIX}{target} ({size / 1e6:.1f} MB): {place}")
    if json:
        console.print_json({"run": str(run), "repo": f"{PREFIX}{target}", "place": place, "bytes": size})


def _report(run: Path) -> dict[str, Any] | None:
    """The run's scores, if it holds some.

    Raises:
        DiffError: the file is damaged.
    """
    path = run / REPORT
    if not path.is_file():
        return None
    try:
        report = json_module.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DiffError(
            "not readable as JSON", where=str(path), hint="move it away, or evaluate again"
        ) from error
    return report if isinstance(report, dict) else None


def _knows_its_data(trained: OpenRun) -> bool:
    """A run folder holds all settings; an export only those of the model."""
    return trained.folder is not None
