"""What other parts read of the metadata that vectors and edits carry: checked on reading, whoever wrote the file."""

from typing import Annotated, Any, NotRequired, Required, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from steer2edit.errors import ArtifactError, Steer2EditError
from steer2edit.steering.diagnosis import Diagnosis

_MOST_FAULTS = 5
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of a file: checked on reading, and what it does not know is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @classmethod
    def read(cls, content: object, what: str, remedy: str, error: type[Steer2EditError] = ArtifactError) -> Self:
        """The record of what a file holds; the error, `WHAT: its faults. REMEDY`, where it is another thing."""
        try:
            return cls.model_validate(content)
        except ValidationError as fault:
            faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors(include_url=False)]
            more = f" ({len(faults)} faults in all)" if len(faults) > _MOST_FAULTS else ""
            shown = "; ".join(one.removeprefix(": ") for one in faults[:_MOST_FAULTS])
            raise error(f"{what}: {shown}{more}. {remedy}") from fault


class BaseCheckpointRecord(Record):
    """The model that was edited; its fingerprint is unknown where some of its projections are quantised."""

    name: str
    fingerprint: Sha256 | None
    revision: str | None = None
    model_type: str | None = None
    gguf_sha256: Sha256 | None = None


class _Chat(TypedDict, total=False):
    arguments: dict[str, Any] | None
    date: str | None
    system: str | None


class BaseModelRecord(BaseCheckpointRecord):
    """The model an edit was made on: `LanguageModel.describe()`."""

    fingerprint: Sha256
    chat: _Chat | None = None


class _MadeOn(TypedDict, total=False):
    name: str
    fingerprint: str
    chat: _Chat | None


class _Contrast(TypedDict, total=False):
    name: str


class _Gate(TypedDict):
    auroc: FiniteFloat
    auroc_low: FiniteFloat
    requests: int
    silent: int


class _Effects(TypedDict):
    decided_by: str
    gate: NotRequired[_Gate]
    drift: NotRequired[Annotated[FiniteFloat, Field(gt=0)]]


class _Row(TypedDict):
    positive: tuple[str | list[dict[str, str]], str]
    negative: tuple[str | list[dict[str, str]], str]


class VectorsFacts(TypedDict, total=False):
    """Of the metadata of vectors, which an edit has as `vectors`."""

    model: _MadeOn | None
    contrast: _Contrast
    prompts: list[str]
    preview: list[_Row]
    recipe: dict[str, Any] | None
    effects: _Effects
    span_part: str


class VectorsHeader(Record):
    """Of the header of a file of vectors."""

    metadata: VectorsFacts
    diagnosis: Diagnosis | None


class _Drift(TypedDict):
    kl: FiniteFloat
    asked: NotRequired[FiniteFloat]
    requests: int


class EditFacts(TypedDict, total=False):
    """Of the metadata of an edit."""

    model: Required[BaseModelRecord]
    method: str
    rules: dict[str, str]
    hyperparameters: dict[str, FiniteFloat | None]
    drift: _Drift | None
    vectors: VectorsFacts
    without: list[str]


def _checked(edit: dict[str, Any]) -> dict[str, Any]:
    TypeAdapter(EditFacts).validate_python(edit)
    return edit


EditMetadata = Annotated[dict[str, Any], AfterValidator(_checked)]
"""An edit's metadata as it is; its key `model` says which model the edit is for."""
