"""`diff push`: a trained model under a name on the hub, with its model card."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcli.errors import DiffError
from diffcli.export.folder import write_folder
from diffcli.runs.folder import REPORT
from diffcli.runs.hub import PREFIX, check_access, parse_repo, publish
from diffcli.runs.model_card import write_card
from diffcli.runs.opening import open_run
from diffcli.runtime import console


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff push` is asked for."""

    run: Path
    """A run folder, an exported folder or a checkpoint file."""
    repo: str
    """OWNER/NAME, or OWNER/NAME@REVISION."""
    private: bool = False
    """A new repository is private."""
    with_backbone: bool = False
    """Publish the frozen diffusion model as well (its licence must allow that)."""
    licence: str | None = None
    """Of the published weights; None takes the diffusion model's."""


def run(request: Request) -> None:
    """Export a run into a temporary folder, write its card and make that the content of the repository.

    Raises:
        CheckpointError: no trained weights there.
        DiffError: see `publish`.
    """
    target = parse_repo(request.repo)
    check_access(target)
    trained = open_run(request.run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / target.name.partition("/")[2]
        facts = write_folder(trained, folder, with_backbone=request.with_backbone)
        report = _report(request.run)
        if report is not None:
            shutil.copyfile(request.run / REPORT, folder / REPORT)
        card = write_card(
            repo=str(target),
            config=trained.config,
            trained_on=trained.config.data.train if trained.folder else None,  # an export keeps model: alone
            facts=facts,
            report=report,
            licence=request.licence,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        place = publish(folder, target, private=request.private)
    console.say(f"published {request.run} as {PREFIX}{target} ({size / 1e6:.1f} MB): {place}")
    record = {"run": request.run, "repo": f"{PREFIX}{target}", "place": place, "bytes": size}
    console.print_record(record)


def _report(run: Path) -> dict[str, Any] | None:
    """The run's scores, if it holds some.

    Raises:
        DiffError: the file is damaged.
    """
    path = run / REPORT
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DiffError(
            "not readable as JSON", where=str(path), hint="move it away, or evaluate again"
        ) from error
    return report if isinstance(report, dict) else None
