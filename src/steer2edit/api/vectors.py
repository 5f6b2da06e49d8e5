"""Steering vectors: made of pairs, judged, added at run time."""

from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from steer2edit import artifacts
from steer2edit.api import showing
from steer2edit.api.keywords import public, require_fit
from steer2edit.artifacts import VectorSource, save_vectors
from steer2edit.core import Steering, SteeringVectors, UseAt, finite_strength
from steer2edit.editing import intervened
from steer2edit.evaluation import Arm, steering_arm
from steer2edit.models import LanguageModel
from steer2edit.recipes.making import make_vectors
from steer2edit.settings import ExtractOptions
from steer2edit.steering.contrast import ContrastSet, Source
from steer2edit.tables import frame

if TYPE_CHECKING:
    import pandas


class Vectors(SteeringVectors):
    """A behaviour's steering vectors by site; made by `extract` or `load_vectors`."""

    @classmethod
    def of(cls, vectors: SteeringVectors) -> "Vectors":
        """The same vectors."""
        return cls(**{field.name: getattr(vectors, field.name) for field in fields(SteeringVectors)})

    def on(
        self, model: LanguageModel, strength: float, *, allow_mismatch: bool = False
    ) -> AbstractContextManager[None]:
        """Within the context, every site of the model writes `strength · v` besides.

        Raises:
            MismatchError: the vectors are for another model (unless `allow_mismatch`) or another shape.
        """
        require_fit(model, self, allow_mismatch)
        return intervened(model, [Steering(self, finite_strength(strength))])

    def __matmul__(self, strength: float) -> Arm:
        """Steering at a strength, for `evaluate`."""
        return steering_arm(self, finite_strength(strength))

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write them to a .safetensors file, completely or not at all.

        Raises:
            ArtifactError: the name ends otherwise, the file exists or cannot be written.
        """
        save_vectors(self, path, overwrite=overwrite)

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each site: length of the vector, and the diagnosis; needs pandas."""
        judged = (self.diagnosis or {}).get("sites", {})
        norms = {str(site): means.steering_vector.norm().item() for site, means in self.sites.items()}
        return frame([{"site": site, "norm": norm, **judged.get(site, {})} for site, norm in norms.items()])

    def __repr__(self) -> str:
        contrast = self.metadata.get("contrast")
        source = contrast.get("name") if isinstance(contrast, dict) else self.metadata.get("origin", "unknown")
        counts = (self.diagnosis or {}).get("counts", {}).get("train")
        made = f", {counts['positive']} positive and {counts['negative']} negative responses" if counts else ""
        effects = all(means.effects for means in self.sites.values())
        return showing.lines(
            f"Vectors of {len(self.sites)} sites: {source}{made}",
            str((self.diagnosis or {}).get("summary", "")),
            "With measured effects: convert makes an edit of these." if effects else "",
        )

    def _repr_html_(self) -> str:
        if not (self.diagnosis or {}).get("sites"):
            return showing.page(repr(self))
        from steer2edit.report.figures import diagnosis_figure
        from steer2edit.steering.diagnosis import Diagnosis

        layers = 1 + max(site.layer for site in self.sites)
        figure = diagnosis_figure(Diagnosis.model_validate(self.diagnosis), layers)
        return showing.page(repr(self), showing.plot(figure))


@public
def extract(model: LanguageModel, pairs: Source | ContrastSet, options: ExtractOptions) -> Vectors:
    """Steering vectors of a behaviour, by contrasting responses, with a diagnosis of whether they are any good.

    Args:
        model: the base model.
        pairs: (prompt, positive, negative) for each prompt; rows by column, as a contrast file has them; a preset's
            name; a file; or a contrast set.

    Raises:
        DataError: no such preset or file, rows that lack what they need, or an empty class.
    """
    return Vectors.of(make_vectors(model, options, pairs))


def load_vectors(source: VectorSource, *, use_at: UseAt | None = None) -> Vectors:
    """Vectors from a file, or from wherever else you have them.

    Args:
        source: a file of this or of other tools; or a mapping from a site, `L3.mlp`, to v.
        use_at: for directions of whole layers, which projections take them: attn, mlp or both.

    Raises:
        ArtifactError: the file is not there, or is no such file.
        InvalidValueError: a key is no site, or a tensor has another form.
    """
    return Vectors.of(artifacts.load_vectors(source, use_at))
