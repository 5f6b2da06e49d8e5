"""`steer2edit push`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import JsonOption


def push(
    edit_dir: Annotated[Path, typer.Argument(metavar="EDIT_DIR", help="What `convert`, `combine` or `export` wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the Hub: name or owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it does not exist. main by default.")] = None,
    without_contract: Annotated[
        bool, typer.Option("--without-contract", help="Publish a model card that does not state the edit's contract.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Push an edit with its model card to the Hugging Face Hub: our files only, in one commit.

    The card must state the edit's contract (`stress --card`), unless --without-contract is given.

    \b
    Example:
    steer2edit push edit me/my-edit --private
    """
    from steer2edit.artifacts.edits.hub import push as push_to_hub
    from steer2edit.cli.console import print_json, say
    from steer2edit.progress import show_progress

    with show_progress():
        pushed = push_to_hub(edit_dir, repo_id, private=private, revision=revision, without_contract=without_contract)
    if json_output:
        return print_json(
            {"repository": pushed.repository, "url": pushed.url, "files": list(pushed.files)}
            | ({"local_base": pushed.local_base} if pushed.local_base else {})
        )
    say(f"Pushed {len(pushed.files)} files: {pushed.url}")
    if pushed.local_base:
        say(
            f"The base is a folder, {pushed.local_base}, and the adapter that was pushed has its name only. "
            "Write the base's Hub id as base_model_name_or_path into adapter_config.json, and as base_model into "
            "README.md."
        )
    return None
