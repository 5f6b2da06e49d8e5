"""`steer2edit chat`."""

import sys
from typing import Annotated, Any

import typer

from steer2edit.cli.console import OUT, columns_of_text
from steer2edit.cli.late import editing, evaluation, models
from steer2edit.cli.measure import Interventions
from steer2edit.cli.options import ModelArgument
from steer2edit.settings import Loading, shared
from steer2edit.tables import shown_reply

_NEW = "/new"


def chat(
    model: ModelArgument,
    interventions: Interventions,
    loading: Loading,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to say; without it, a talk.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 for the likeliest words.")] = 0.0,
    seed: shared.Seed = 0,
) -> dict[str, Any] | None:
    """Talk to the base, steered and edited model, side by side.

    In a talk every one of them goes on from its own replies; /new begins another, Ctrl+D ends.

    \b
    Example:
    steer2edit chat smollm2 "Write a letter to my bank." --edit edit \\
      --steer vectors.safetensors:0.2
    """
    if prompt is None and (OUT.quiet or not sys.stdin.isatty()):
        raise typer.BadParameter("give a PROMPT: a talk needs a terminal to type into, and has no --json.")

    sampling = models.Sampling(max_new_tokens, temperature, seed=seed)
    arms = interventions.arms()
    loaded = interventions.load(model, loading, arms)
    turns: list[list[models.Message]] = [[] for _ in arms]
    if prompt is not None:
        found = [
            {"label": arm.label, "reply": r.answer, "thought": r.thought, "finished": r.finished, "tokens": len(r.ids)}
            for arm, r in zip(arms, _answer(loaded, arms, turns, prompt, sampling), strict=True)
        ]
        return {"schema_version": 1, "model": loaded.describe(), "prompt": prompt, "replies": found}
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return None
        if text == _NEW:
            turns = [[] for _ in arms]
        elif text:
            for own, reply in zip(turns, _answer(loaded, arms, turns, text, sampling), strict=True):
                own += [{"role": "user", "content": text}, {"role": "assistant", "content": reply.answer or reply.text}]


def _answer(
    model: "models.LanguageModel",
    arms: "list[evaluation.Arm]",
    turns: "list[list[models.Message]]",
    text: str,
    sampling: "models.Sampling",
) -> "list[models.Reply]":
    """The reply of every arm to a text behind its own turns, shown as they grow."""
    from rich.live import Live

    asked: list[models.Prompt] = [[*own, {"role": "user", "content": text}] for own in turns]
    encoded = models.encode_prompts(model, asked, room=sampling.max_new_tokens)
    labels = [arm.label for arm in arms]

    def shown(replies: "list[models.Reply]") -> Any:
        return columns_of_text(labels, [shown_reply(reply.shown) for reply in replies])

    with editing.intervened(model, [arm.intervention for arm in arms]):
        if OUT.quiet:
            return models.generate_batch(model, encoded, sampling)
        with Live(console=OUT, refresh_per_second=8, transient=OUT.is_terminal) as live:
            growing = (lambda replies: live.update(shown(replies))) if OUT.is_terminal else None
            replies = models.generate_batch(model, encoded, sampling, growing)
    OUT.print(shown(replies), soft_wrap=False)
    return replies
