"""Pushing an edit to the Hugging Face Hub: our files and nothing else, in one commit."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.cards import CARD_FILE
from steer2edit.artifacts.edits.adapter import COMPONENTS_FILE, MEMBERS, load_members
from steer2edit.artifacts.edits.lora import ADAPTER_FILE, CONFIG_FILE
from steer2edit.artifacts.edits.scorecard_section import has_contract
from steer2edit.artifacts.exports.export import read_export, usage
from steer2edit.artifacts.manifest import CombinedManifest, kind_of, read_json, read_manifest
from steer2edit.artifacts.tensors import file_sha256
from steer2edit.errors import ArtifactError
from steer2edit.models.model_path import HUB_ID
from steer2edit.progress import step

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_COMBINED_FILES = (CARD_FILE, CONFIG_FILE, ADAPTER_FILE, MANIFEST_FILE)
_EDIT_FILES = (*_COMBINED_FILES, COMPONENTS_FILE)
_BASE = "base_model_name_or_path"
_REMEDIES = {
    401: "The token is not valid: run `hf auth login`, or set HF_TOKEN.",
    403: "The token may not write there: use one with the role `write`, or another repository.",
    404: "There is no such repository or branch, or the token may not see it.",
}


@dataclass(frozen=True)
class Pushed:
    """What was pushed."""

    repository: str  # id of the repository
    url: str  # of the commit
    files: tuple[str, ...]  # names of the files
    local_base: str | None  # the base's path on this machine, where the adapter names no Hub model as its base


def push(
    directory: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    without_contract: bool = False,
) -> Pushed:
    """Create the repository if need be, and commit the artifact's files to it.

    What is pushed names no path of this machine: of a folder only its name. An existing repository stays as `private`
    as it is, and a branch (`revision`) that does not exist is made. An ArtifactError where the directory is not ours
    or damaged, its card states no contract (unless `without_contract`), or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    files = pushed_files(directory)
    if not (without_contract or has_contract(directory)):
        raise ArtifactError(
            f"the model card of {directory} does not state a contract: what is left of the edit's gain under attack, "
            "in 4 bits, after a fine-tune. Run `steer2edit stress MODEL --edit DIR --out RUN --card` on it first, or "
            "pass --without-contract."
        )
    operations, local_base = _operations(directory, files)
    try:
        with step(f"Pushing to {repository}", 1) as advance:
            if not get_token():
                raise ArtifactError("there is no token for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN.")
            api = HfApi()
            full = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
            if revision is not None and revision != "main":
                api.create_branch(full, branch=revision, exist_ok=True)
            commit = api.create_commit(full, operations, commit_message="Upload a steer2edit edit", revision=revision)
            advance(1)
    except HFValidationError as error:
        raise ArtifactError(f"{repository!r} is no name of a repository: {error} Give name or owner/name.") from error
    except HfHubHTTPError as error:
        remedy = _REMEDIES.get(error.response.status_code, "Try again, or see the Hub's status page.")
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"cannot push to {repository}: the Hub refused it ({reason}). {remedy}") from error
    except (HTTPError, ConnectionError, RuntimeError) as error:  # the last where a large file did not get through
        raise ArtifactError(
            f"cannot push to {repository}: the Hub cannot be reached ({error}). Check the connection, HF_ENDPOINT, "
            "and that HF_HUB_OFFLINE is not set."
        ) from error
    return Pushed(repository, str(commit.commit_url), files, local_base)


def pushed_files(directory: Path) -> tuple[str, ...]:
    """The files of an artifact, relative to it, checked by reading them; an ArtifactError unless it is ours, whole."""
    match kind_of(directory):
        case "weight-edit":
            load_members(directory)
            files = [*_EDIT_FILES]
        case "combined-edit":
            load_members(directory)
            members = [f"{MEMBERS}/{member.name}" for member in read_manifest(directory, CombinedManifest).members]
            files = [*_COMBINED_FILES, *(f"{name}/{file}" for name in members for file in _EDIT_FILES)]
        case "export":
            adapters = read_export(directory).adapters
            files = [CARD_FILE, MANIFEST_FILE, *(name for adapter in adapters for name in adapter.files)]
        case kind:
            what = f"holds a {kind}" if kind else f"has no {MANIFEST_FILE}: steer2edit did not write it"
            raise ArtifactError(
                f"{directory} {what}. Only edits, combined edits and exports are pushed; for anything else there is "
                "`hf upload`."
            )
    for name in files:
        if not (directory / name).is_file():
            raise ArtifactError(f"{directory / name} is missing: it belongs to what is pushed. Make the edit again.")
    return tuple(files)


def _operations(directory: Path, files: tuple[str, ...]) -> tuple[list["CommitOperationAdd"], str | None]:
    """What to commit, without paths of this machine; and the base's path where an adapter names no Hub id instead."""
    from huggingface_hub import CommitOperationAdd

    contents: dict[str, Path | bytes] = {name: directory / name for name in files}
    manifest = read_json(directory / MANIFEST_FILE)
    base = str((manifest.get("base") or manifest["edit"]["model"])["name"])
    hub_id = HUB_ID if base.lower() == "smollm2" else None
    local_base: str | None = None
    hashes: dict[str, str] = {}
    for name in sorted((name for name in files if name.endswith(".json")), key=lambda name: name == MANIFEST_FILE):
        before = read_json(directory / name)
        after = {key: _portable(value) for key, value in before.items()}
        if Path(name).name == CONFIG_FILE and after != before:
            local_base = local_base or (None if hub_id else str(before[_BASE]))
            after[_BASE] = hub_id or after[_BASE]
        if name == MANIFEST_FILE and before.get("kind") == "export":
            after["usage"] = usage(read_export(directory))
        if after != before or (name == MANIFEST_FILE and hashes):
            text = json.dumps(after, ensure_ascii=False, indent=2)
            for old, new in hashes.items():  # an export's manifest has those of its other files
                text = text.replace(old, new)
            contents[name] = text.encode()
            hashes[file_sha256(directory / name)] = hashlib.sha256(text.encode()).hexdigest()
    return [CommitOperationAdd(path_in_repo=n, path_or_fileobj=content) for n, content in contents.items()], local_base


def _portable(value: Any) -> Any:
    """A JSON value in which every path of this machine is the last part of it alone."""
    if isinstance(value, dict):
        return {key: _portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_portable(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
