"""Requests that come with the package (harmful, benign, safe but alarming), and written answers to some."""

from typing import Literal

from steer2edit.models import EncodedResponse, LanguageModel, Prompt
from steer2edit.models.fine_tuning import training_rows
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.labels import Label
from steer2edit.steering.rows import Split, read_table


def built_in_requests(
    name: Literal["harmful", "benign", "borderline"], split: Split, wanted: int | None = None
) -> list[str]:
    """Requests of one split of a set of the behaviour safety.

    There are the usual ones at least (96, 48 and 96; 112, 16 and 16 borderline ones), and more where more are `wanted`:
    up to 300 held-out ones.
    """
    safety = find_behaviour("safety")
    path = safety.file(name)
    assert path is not None
    usual = safety.sets[name].usual[split]
    return [row.text("prompt") for row in read_table(path).split(split)][: max(usual, wanted or 0)]


def safety_prompts(split: Split, wanted: int | None = None) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests; see `built_in_requests`."""
    return built_in_requests("harmful", split, wanted), built_in_requests("benign", split, wanted)


def written_answers(behaviour: str, label: Label) -> list[tuple[Prompt, str]]:
    """(request, reply) pairs of a behaviour's training split: never among the prompts that are asked."""
    return [
        (example.prompt, example.response)
        for example in find_behaviour(behaviour).examples()
        if example.label == label and example.split == "train" and example.response
    ]


def helpful_answers(model: LanguageModel) -> list[EncodedResponse]:
    """Written answers to benign requests of the presets' training part, as rows to be trained on."""
    return training_rows(
        model, [*written_answers("safety-benign", "negative"), *written_answers("conciseness", "positive")]
    )
