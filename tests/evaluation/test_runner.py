"""The runner brings every task's figures together, one condition per arm, on the same items."""

import json

import pytest
import torch
from scripted_model import ScriptedModel

from steer2edit.core import Editing, Site, SiteEdit, Steering, WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation import BASE_ARM, Arm, DriftTask, edit_arm, evaluate, steering_arm
from steer2edit.evaluation.likelihood_tasks import PreferenceTask
from steer2edit.evaluation.reply_tasks import LengthTask, RefusalTask
from steer2edit.evaluation.statistics import rate
from steer2edit.models import Sampling
from steer2edit.steering.refusal import RefusalPhrases
from tiny_chat import END

SCRIPT = {
    "?": ("N", 2.0), "N": (".", 2.0), ".": (END, 2.0),
    "!": ("Y", 0.5), "Y": ("e", 2.0), "e": ("s", 2.0), "s": (END, 2.0),
}  # fmt: skip
SCRIPTED = ScriptedModel(SCRIPT, lure=("N", 1.5))
SAMPLING = Sampling(max_new_tokens=6)
SAYS_NO = RefusalPhrases("no", openers=("n",))
TASKS = (
    RefusalTask("harmful", ("a!", "b?"), SAMPLING, SAYS_NO),
    RefusalTask("benign", ("c!",), SAMPLING, SAYS_NO),
    LengthTask("", ("d?", "e!"), SAMPLING),
    PreferenceTask("truth", (("q?", "N", "x"),)),
    DriftTask("", ("c!",), SAMPLING),
)


def edit() -> WeightEdit:
    site = SiteEdit(torch.eye(64)[0], torch.ones(48), torch.ones(48), torch.ones(48))
    return WeightEdit({Site(1, "mlp"): site}, {"hyperparameters": {"rho_attn": None, "rho_mlp": 0.9, "alpha": 0.5}})


def test_conditions() -> None:
    arms = [BASE_ARM, steering_arm(SCRIPTED.vectors(), 0.5), steering_arm(SCRIPTED.vectors(), 0.0)]
    base, steered, zero = evaluate(TransformersEngine(SCRIPTED.model), TASKS, arms)
    assert (base.kind, base.label, dict(base.parameters)) == ("base", "base", {})
    assert (steered.kind, steered.label, dict(steered.parameters)) == ("steering", "steering 0.5", {"strength": 0.5})
    for condition in (base, steered, zero):
        assert set(condition.metrics) == {
            name for task in TASKS for name in task.metric_names
        }  # every task's metrics, and no other
        assert set(condition.replies) == {"harmful", "benign", "requests"}
        assert set(condition.outcomes) == {"harmful", "benign"}
    assert base.replies == {"harmful": ["Yes", "N."], "benign": ["Yes"], "requests": ["N.", "Yes"]}
    assert base.outcomes == {"harmful": [False, True], "benign": [False]}
    assert base.metrics["harmful_refused"] == rate([False, True])
    assert base.metrics["benign_refused"] == rate([False])
    assert steered.replies == {"harmful": ["N.", "N."], "benign": ["N."], "requests": ["N.", "N."]}
    assert steered.outcomes == {"harmful": [True, True], "benign": [True]}
    assert steered.metrics["reply_tokens"].value == 2.0
    assert (zero.metrics, zero.replies, zero.outcomes) == (base.metrics, base.replies, base.outcomes)
    assert base.metrics["kl"].value == 0.0
    assert steered.metrics["kl"].value == pytest.approx(SCRIPTED.kl("!Yes", 0.5), abs=1e-4)


def test_json() -> None:
    (base,) = evaluate(TransformersEngine(SCRIPTED.model), TASKS[:1], [BASE_ARM])
    found = json.loads(json.dumps(base.to_json(), allow_nan=False))
    assert found == {
        "kind": "base",
        "label": "base",
        "parameters": {},
        "metrics": {"harmful_refused": rate([False, True]).to_json()},
        "replies": {"harmful": ["Yes", "N."]},
        "outcomes": {"harmful": [False, True]},
        "values": {"harmful_refused": [False, True]},
    }


def test_arms() -> None:
    steering = steering_arm(SCRIPTED.vectors(), 0.1 + 0.2)
    assert steering.label == "steering 0.3"
    assert isinstance(steering.intervention, Steering)
    assert steering.intervention.strength == steering.parameters["strength"] == 0.1 + 0.2
    changed = edit()
    arm = edit_arm(changed, "mine", 0.5)
    assert arm == Arm("edit", "mine", Editing(changed, 0.5), arm.parameters)
    assert arm.parameters == {"rho_attn": None, "rho_mlp": 0.9, "alpha": 0.5, "strength": 0.5}
    assert edit_arm(changed, "mine").parameters["strength"] == 1.0
    assert BASE_ARM.intervention is None


def test_no_arms() -> None:
    assert evaluate(TransformersEngine(SCRIPTED.model), TASKS, []) == []
