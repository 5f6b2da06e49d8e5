"""The methods of a comparison: each an intervention with a strength."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from steer2edit.core import Editing, Intervention, Site, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import ablation, compute_factors, natural_strength, recommended, rosi
from steer2edit.errors import InvalidValueError, MismatchError, NoiseError
from steer2edit.estimates import ConditionKind
from steer2edit.method import PAPER_RULES, Hyperparameters, Rules, output_direction
from steer2edit.models import LanguageModel

STEERING = "steering"
PAPER = Hyperparameters(rho_attn=0.15, rho_mlp=None, alpha=0.5, max_shift=0.4)
"""The paper's rule for attention, each site's shift limited: the best setting found on SmolLM2's validation items."""
_NATURAL = 0.2
_ROSI_SIZE = 1.0  # of the whole row


@dataclass(frozen=True)
class Method:
    """A way to move a behaviour."""

    kind: ConditionKind  # steering or edit
    at: Callable[[float], Intervention]  # the intervention at a strength > 0
    first: float  # a strength that drifts little, but at all
    identity: str  # what makes it this method


def comparison_methods(
    model: LanguageModel,
    vectors: SteeringVectors,
    edits: Mapping[str, WeightEdit],
    *,
    suppress: bool = False,
    allow_mismatch: bool = False,
) -> tuple[dict[str, Method], dict[str, str]]:
    """Steering, the edits that follow from the vectors, the baselines, and the edits given.

    Args:
        model: the base.
        vectors: with input means; with effects for the edits made of them.
        edits: further ones by name.
        suppress: whether the behaviour is to be taken away: negative strengths, and directional ablation besides.
        allow_mismatch: accept vectors and edits of another model.

    Returns:
        The methods by name, and those left out with the reason.

    Raises:
        MismatchError: an artifact is for another model or shape, or the vectors have no input means.
        NoiseError: the vectors are all noise.
        InvalidValueError: a given edit has the name of another method.
    """
    sign = -1 if suppress else 1
    made, left_out = _made_edits(model, vectors, allow_mismatch)
    if shared := sorted({STEERING, "ablation", *made, *left_out} & edits.keys()):
        raise InvalidValueError(f"an edit is called {shared[0]!r}, as a method is: rename its directory.")
    for edit in edits.values():
        model.require_fit(edit, allow_mismatch=allow_mismatch)
    methods = {STEERING: Method("steering", lambda s: Steering(vectors, sign * s), 0.05, vectors.digest())}
    methods |= {name: _editing(edit, sign, _ROSI_SIZE if name == "rosi" else None) for name, edit in made.items()}
    methods |= {name: _editing(edit, sign) for name, edit in edits.items()}
    if suppress:
        methods["ablation"] = _editing(ablation(model, _directions(vectors)), 1)
    return methods, left_out


def _made_edits(
    model: LanguageModel, vectors: SteeringVectors, allow_mismatch: bool
) -> tuple[dict[str, WeightEdit], dict[str, str]]:
    recipes = {"paper": (PAPER_RULES, PAPER)}
    left_out = {}
    if recipe := recommended(vectors):
        recipes |= {"effects": (Rules(importance="effect"), recipe[1]), "gated": recipe}
    else:
        left_out["effects"] = "the vectors have no measured effects: extract them with --effects"
    factors, made = compute_factors(model, vectors, PAPER_RULES, allow_mismatch=allow_mismatch), {}
    for name, (rules, hyperparameters) in recipes.items():
        try:
            known = factors if rules == PAPER_RULES else compute_factors(model, vectors, rules, allow_mismatch=True)
            made[name] = known.edit(hyperparameters)
        except (InvalidValueError, MismatchError, NoiseError) as error:  # nothing to edit, or not in those blocks
            left_out[name] = str(error)
    return {**made, "rosi": rosi(model, _directions(vectors))}, left_out


def _directions(vectors: SteeringVectors) -> dict[Site, Tensor]:
    return {site: output_direction(means.steering_vector) for site, means in vectors.sites.items()}


def _editing(edit: WeightEdit, sign: int, size: float | None = None) -> Method:
    """An edit from a strength on that is natural to it, or at which the norm of its whole row is a given one."""
    norm = sum(e.row.double().square().sum().item() for e in edit.sites.values()) ** 0.5
    if norm == 0:
        raise InvalidValueError("an edit is zero everywhere, so it has no curve.")
    first = size / norm if size is not None else natural_strength(edit) or _NATURAL
    return Method("edit", lambda s: Editing(edit, sign * s), first, edit.digest())
