"""Other wordings of a request that edits are made to hold in (`wordings.toml`): a part, a form, a begun reply."""

import tomllib
from collections.abc import Sequence
from importlib import resources

from steer2edit.models import EncodedResponse, LanguageModel, Prompt, encode_responses
from steer2edit.steering.contrast import Pair
from steer2edit.steering.transformation import Transformation, takes_system_prompt

TOKENS = 8
"""First tokens of a response that are to be likely: more than decide it, so that a reply goes on as it begins."""


def wordings(model: LanguageModel) -> list[Transformation]:
    """The wordings of `wordings.toml`, in the form that the chat template takes."""
    rows = tomllib.loads(resources.files("steer2edit.steering").joinpath("wordings.toml").read_text(encoding="utf-8"))
    found = [Transformation(**row) for row in rows["wordings"]]
    return found if takes_system_prompt(model) else [wording.without_system() for wording in found]


def worded_responses(model: LanguageModel, pairs: Sequence[Pair]) -> list[EncodedResponse]:
    """The responses, each to its request in one of the wordings in turn; behind the opener of one that has any."""
    every = wordings(model)
    ways = [every[i % len(every)] for i in range(len(pairs))]
    asked = [way(prompt) for way, (prompt, _) in zip(ways, pairs, strict=True)]
    said = [f"{way.opener} {response}".lstrip() for way, (_, response) in zip(ways, pairs, strict=True)]
    whole = encode_responses(model, list(zip(asked, said, strict=True)))
    begun = iter(encode_responses(model, [(p, way.opener) for p, way in zip(asked, ways, strict=True) if way.opener]))
    starts = [len(next(begun).ids) if way.opener else own.start for way, own in zip(ways, whole, strict=True)]
    return [EncodedResponse(own.ids, start).first(TOKENS) for own, start in zip(whole, starts, strict=True)]


def worded_prompts(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Requests in the wordings that have no opener, in turn."""
    every = [wording for wording in wordings(model) if not wording.opener]
    return [every[i % len(every)](prompt) for i, prompt in enumerate(prompts)]
