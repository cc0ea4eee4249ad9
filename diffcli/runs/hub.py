"""Trained models under a name that others know: `diff push RUN owner/name`, `--run hub:owner/name`.

The hub is the Hugging Face hub or, where DIFFCLI_HUB names a folder, that folder: <folder>/<owner>/<name> holds a
model, <folder>/<owner>/<name>@<revision> another version of it. Either way it is what `diff export` writes.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from diffcli.backbone.hub import LOGIN, hub_errors
from diffcli.errors import CheckpointError, DiffError
from diffcli.files import replace_folder
from diffcli.runs.exported import EXPORT_FACTS

PREFIX = "hub:"
"""How a RUN says that it is a name on the hub."""
FOLDER = "DIFFCLI_HUB"
"""Environment variable: a folder that takes the hub's place."""
FILES = ("*.json", "*.safetensors", "backbone/*")
"""What of a repository is read."""

_OFFLINE = f"connect and try again; {FOLDER}=DIR lets a folder take the hub's place"


@dataclass(frozen=True)
class Repo:
    """owner/name, and the revision (branch, tag or commit) if one is named."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def parse_repo(text: str) -> Repo:
    """The repository that `owner/name` or `owner/name@revision` means; a leading `hub:` is allowed.

    Raises:
        DiffError: written otherwise.
    """
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", text.removeprefix(PREFIX))
    if match is None or ".." in text:
        raise DiffError(
            "not a valid hub name", where=text, hint="write owner/name, or owner/name@revision for a version"
        )
    return Repo(match[1], match[2])


def run_path(run: str | Path) -> Path:
    """Where a run lies: what `hub:owner/name` means is fetched (or found in the cache), all else is a path.

    Raises:
        CheckpointError: see `fetch`.
    """
    return fetch(parse_repo(str(run))) if str(run).startswith(PREFIX) else Path(run)


def short_name(folder: Path) -> str | None:
    """What tables call a folder of the hub's cache: name@commit; None for any other folder."""
    match = re.search(r"models--[^/]+?--([^/]+)/snapshots/(\w{1,7})\w*$", folder.resolve().as_posix())
    return f"{match[1]}@{match[2]}" if match else None


# ------------------------------------------------------------------------------------------------- fetching


def fetch(repo: Repo) -> Path:
    """The folder of a model: the hub's own where a folder stands in for it, else downloaded into the cache.

    Without a network, what the cache holds of it serves.

    Raises:
        CheckpointError: no such repository or revision, no permission, no network, or no model of ours in it.
    """
    stand_in = _stand_in()
    folder = _download(repo) if stand_in is None else _place(stand_in, repo)
    if not (folder / EXPORT_FACTS).is_file():
        there = folder.is_dir()
        raise CheckpointError(
            "no model that diff push wrote is in it" if there else "no such model",
            where=f"{PREFIX}{repo}" if stand_in is None else str(folder),
            hint="diff push RUN owner/name publishes one"
            + ("" if stand_in is None else f" ({FOLDER} is set)"),
        )
    return folder


def _download(repo: Repo) -> Path:
    from huggingface_hub import snapshot_download

    with hub_errors(
        str(repo),
        revision=repo.revision,
        setting="the name after hub:",
        kind=CheckpointError,
        missing="no model that the hub shows you",
        offline_hint=_OFFLINE,
    ):
        return Path(snapshot_download(repo.name, revision=repo.revision, allow_patterns=list(FILES)))


# ------------------------------------------------------------------------------------------------ publishing


def check_access(repo: Repo) -> None:
    """Whether something can be published at all, before anything is prepared for it.

    Raises:
        DiffError: no token for the hub; or something else lies where the folder's copy would.
    """
    stand_in = _stand_in()
    if stand_in is not None:
        target = _place(stand_in, repo)
        if target.exists() and not (target / EXPORT_FACTS).is_file():
            raise DiffError("this holds something that is no model of ours", where=str(target))
        return
    from huggingface_hub import get_token

    if get_token() is None:
        raise DiffError(
            "no token for the hub",
            where=str(repo),
            hint=f"log in: {LOGIN} (or set HF_TOKEN); {FOLDER}=DIR publishes into a folder instead",
        )


def publish(folder: Path, repo: Repo, *, private: bool = False) -> str:
    """Make the folder's files the whole content of the repository, at once or not at all; says where it is now.

    Args:
        private: a new repository is private (a folder: readable by its owner alone); one that exists must be.

    Raises:
        DiffError: no permission, no network, no room; or the repository is public and should be private.
    """
    stand_in = _stand_in()
    if stand_in is not None:
        return _copy(folder, _place(stand_in, repo), private=private)
    return _upload(folder, repo, private=private)


def _upload(folder: Path, repo: Repo, *, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(
        str(repo),
        revision=repo.revision,
        setting="the name",
        kind=DiffError,
        missing="the hub does not let you write there",
        offline_hint=_OFFLINE,
    ):
        url = api.create_repo(repo.name, private=private, exist_ok=True)
        if private and not api.repo_info(repo.name).private:
            raise DiffError(
                "it exists and is public",
                where=str(repo),
                hint="make it private on the hub's page, or push without --private",
            )
        if repo.revision is not None:
            api.create_branch(repo.name, branch=repo.revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo.name,
            folder_path=folder,
            revision=repo.revision,
            commit_message="Model written by diffcli",
            delete_patterns="*",  # what an earlier push left; the files of this one stay
        )
    return f"{url}/tree/{repo.revision}" if repo.revision else str(url)


def _copy(folder: Path, target: Path, *, private: bool) -> str:
    """Copy the folder in the place of what an earlier push left there."""
    try:
        with replace_folder(target) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
            new.chmod(0o700 if private else 0o755)
    except DiffError as error:
        error.hint = f"{FOLDER} must be a folder that you may write to, on a disk with free space"
        raise
    return str(target)


def _stand_in() -> Path | None:
    """The folder that takes the hub's place, if one does."""
    folder = os.environ.get(FOLDER)
    return Path(folder).expanduser() if folder else None


def _place(folder: Path, repo: Repo) -> Path:
    """Where a model lies in that folder; a slash in a revision (a branch feature/x) makes no sub-folder."""
    owner, name = repo.name.split("/")
    return folder / owner / (f"{name}@{repo.revision.replace('/', '--')}" if repo.revision else name)
