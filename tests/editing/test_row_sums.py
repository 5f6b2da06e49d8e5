"""The rows a of a batch: stacked with their strengths, and x · a the same sum whichever way it is computed."""

import pytest
import torch
from edit_models import logits, random_vectors

from families import tiny_model
from steer2edit.core import Editing
from steer2edit.editing import convert, intervened
from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models.hooks import along


def test_an_edit_that_is_not_finite_at_its_strength_is_refused() -> None:
    model = tiny_model("llama")
    edit = convert(model, random_vectors(model), Hyperparameters(0.02, 0.02, 0.2))
    with pytest.raises(InvalidValueError, match=r"L\d\.(attn|mlp): .*not finite at strength"), intervened(
        model, [Editing(edit), Editing(edit, 3e38)]
    ):  # fmt: skip
        logits(model)


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float32_sum(tokens: int, rows: int, dtype: torch.dtype) -> None:
    """Small integers have exact products and sums; 1 + 2⁻¹² is exact in float32 but would be lost in bfloat16."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randint(-8, 9, (3, tokens, 40), generator=generator).to(dtype)
    A = torch.randint(-8, 9, (rows, 40), generator=generator) * (1 + 2.0**-12)
    expected = (x.double() * A.double().expand(3, 40)[:, None]).sum(dim=-1, keepdim=True)
    found = along(x, A[:, None])
    assert found.dtype == torch.float32
    assert found.shape == (3, tokens, 1)
    assert torch.equal(found.double(), expected)
