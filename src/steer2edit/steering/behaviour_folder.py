"""A behaviour is one folder: what it contrasts, and what tells how much of it there is (docs/behaviours.md).

    behaviour.toml                 what it is, its sets of items and their scorers
    contrast.jsonl                 what steering vectors are extracted from
    SET.jsonl                      items of a set; by default the rows of the contrast that no vector is made from

Those that come with the package are such folders. A plain contrast file is a behaviour too: of its pairs it is asked
which side is likelier.
"""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steer2edit.errors import DataError, did_you_mean
from steer2edit.steering.data_files import HUB, SUFFIXES, read_text
from steer2edit.steering.examples import Example, read_examples
from steer2edit.steering.rows import Split

BUILT_IN = Path(__file__).parents[1] / "behaviours"
FILE = "behaviour.toml"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*"


class ItemSet(BaseModel):
    """A set of items and how it is scored; keys that are not listed here are the scorer's own."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    scorer: str  # what scores an item. `like = "SET"` in place of it: as another set, but for what is said
    metrics: Annotated[str, Field(pattern=rf"^({_NAME})?$")] | None = None  # what they are called after, if not the set
    # their file in the folder, by default `SET.jsonl` (or another format), else the contrast's own rows; or
    # `BEHAVIOUR:SET`, a set of a behaviour that comes with the package
    items: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None  # longest reply; each scorer has a default of its own
    usual: dict[Split, int] = Field(default_factory=dict)  # how many are used of a split where no limit asks for more
    optional: bool = False  # measured by comparisons, or where data is given for it


class BehaviourFolder(BaseModel):
    """What a `behaviour.toml` says, and where it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = ""  # of the folder, or of the contrast file
    folder: Path | None = None  # where its files are; `None` for a contrast file alone
    contrast: str = "contrast"  # what vectors are made from: a file, or the contrast file itself as it was given
    description: str = ""  # what it contrasts, in a few words
    labeller: str | None = None  # sorts replies that the model generates for the contrast
    decided_by: Literal["first", "answer", "end"] = "first"  # what of a response decides the behaviour
    silent_on: str | None = None  # requests on which gated edits are to do nothing
    measured_as: str | None = None  # another behaviour whose sets measure this one
    attribute: str | None = None  # the metric that an edit is to move, by default the first of the first set
    direction: Literal["higher", "lower"] = "higher"  # whether more or less of it is wanted
    guide: str | None = None  # a finer metric of the attribute
    # other metrics that an edit is to leave alone: what of them it costs beside drift
    costs: dict[str, Literal["rise", "fall"]] = Field(default_factory=dict)
    reach: float | None = None  # a level of the attribute whose drift comparisons report
    sets: dict[Annotated[str, Field(pattern=rf"^{_NAME}$")], ItemSet] = Field(default_factory=dict)  # what is measured

    @property
    def where(self) -> str:
        """For messages: its file."""
        return str(self.folder / FILE if self.folder else self.name)

    def file(self, stem: str) -> Path | None:
        """The file of its folder, or `BEHAVIOUR:SET`, of this name in any format; a DataError for one outside it."""
        other, named, own = stem.partition(":")
        if named and other in built_in_names():
            return _built_in(other).file(own)
        if self.folder is None:
            return None
        found = next(filter(Path.is_file, (self.folder / f"{stem}{suffix}" for suffix in ("", *SUFFIXES))), None)
        if found is not None and self.folder.resolve() not in found.resolve().parents:
            raise DataError(f"{self.folder / FILE} names {stem!r}, which is not in its folder. Copy the file there.")
        return found

    def examples(self) -> list[Example]:
        """The rows of its contrast; a DataError where there are none."""
        source = self.contrast if self.folder is None else self.file(self.contrast)
        if source is None:
            raise DataError(f"the behaviour {self.name!r} has no contrast: put contrast.jsonl into {self.folder}.")
        return read_examples(source)


def find_behaviour(source: str | Path) -> BehaviourFolder:
    """The behaviour that a user names, built in, a folder or a contrast file; a DataError where there is none."""
    if isinstance(source, str) and source in built_in_names():
        return _built_in(source)
    path = Path(source).expanduser()
    if path.is_dir():
        name = path.resolve().name
        if name in built_in_names() and path.resolve() != (BUILT_IN / name).resolve():
            raise DataError(f"{path} is called as one that comes with the package, {name!r}. Rename the folder.")
        if not re.fullmatch(_NAME, name):
            raise DataError(f"a behaviour's folder must be named in letters, digits, - and _, got {name!r}. Rename it.")
        return _read(path)
    if path.suffix.lower() in SUFFIXES or str(source).startswith(HUB):
        pairs = {"pairs": ItemSet(scorer="preference")}
        return BehaviourFolder(name=path.name, contrast=str(source), sets=pairs)
    raise DataError(
        f"there is no behaviour {str(source)!r}. {did_you_mean(str(source), built_in_names())} Or give a folder with a "
        f"{FILE}, or a contrast file ({', '.join(SUFFIXES)})."
    )


@cache
def built_in_names() -> tuple[str, ...]:
    """The behaviours that come with the package."""
    return tuple(sorted(path.name for path in BUILT_IN.iterdir() if (path / FILE).is_file()))


@cache
def _built_in(name: str) -> BehaviourFolder:
    return _read(BUILT_IN / name)


def _read(folder: Path) -> BehaviourFolder:
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"there is no {FILE} in {folder}: it says what is measured. See docs/behaviours.md.")
    try:
        content: dict[str, Any] = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}.") from error
    if own := {"name", "folder"} & content.keys():
        raise DataError(f"{path}: there is no key {min(own)!r}: a behaviour is called after its folder.")
    sets = content.get("sets", {})
    if not isinstance(sets, dict):
        raise DataError(f"{path}: sets must be tables, [sets.NAME], got {sets!r:.80}. See docs/behaviours.md.")
    for name, own in sets.items():
        if isinstance(own, dict) and (like := own.pop("like", None)) is not None:
            if not isinstance(sets.get(like), dict):
                raise DataError(f"{path}: sets.{name}.like: there is no set {like!r}. {did_you_mean(str(like), sets)}")
            sets[name] = {**sets[like], **own}
    try:
        return BehaviourFolder(**{**content, "name": folder.resolve().name, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"]
        if first["type"] == "extra_forbidden":
            known = BehaviourFolder.model_fields.keys() - {"name", "folder"}
            reason = f"there is no such key. {did_you_mean(key, known)}"
        raise DataError(f"{path}: {key}: {reason.rstrip('.')}. See docs/behaviours.md.") from error
