"""What the page shows as a command and as Python, to be copied: both give the replies that are seen."""

import shlex
from typing import Any

from steer2edit.play.stage import Session, Stage

SAVED = "my-edit"
"""The folder that an edit is saved as, unless it is given another name."""


def as_code(stage: Stage, session: Session, prompt: str) -> tuple[str, str]:
    """The command and the Python of what is seen; of a conversation, the command that begins one.

    The prompt is what would be said if nothing was yet.
    """
    base, *_, last = arms = stage.arms(session)
    words = ["steer2edit", "chat", stage.model.name]
    lines = ["import steer2edit as s2e", ""]
    keywords = [repr(stage.model.name), *(f"{key}={value!r}" for key, value in stage.loading.items())]
    sampling: dict[str, Any] = {"max_new_tokens": session.sampling.max_new_tokens}
    if session.sampling.temperature:
        sampling["temperature"] = session.sampling.temperature
    if session.edit is not None:
        off = ", ".join(map(repr, sorted(session.off)))
        lines.append(f"edit = s2e.load_edit({session.edit!r})" + (f".without({off})" if off else ""))
        words += ["--edit", SAVED if off else f"{session.edit}:{session.strength:g}"]
    if session.steering is not None:
        lines.append(f"vectors = s2e.load_vectors({session.steering!r})")
    if last is not base:
        keywords.append(f"like={'vectors' if session.edit is None else 'edit'}.metadata")
    lines.append(f"model = s2e.load({', '.join(keywords)})")
    for arm in arms:
        turns = [dict(message) for message in session.turns.get(arm.kind, ())[:-1]]
        said = turns[0]["content"] if len(turns) == 1 else turns or prompt
        given = ", ".join([repr(said), *(f"{key}={value!r}" for key, value in sampling.items())])
        if arm.kind == "base":
            lines.append(f"print(model.reply({given}))")
            words[3:3] = [said] if isinstance(said, str) else []
            continue
        name, strength = {"edit": "edit", "steering": "vectors"}[arm.kind], arm.parameters["strength"]
        lines += [f"with {name}.on(model, {strength:g}):", f"    print(model.reply({given}))"]
        words += ["--steer", f"{session.steering}:{strength:g}"] if arm.kind == "steering" else []
    for key, value in {**sampling, **stage.loading}.items():
        option = f"--{key.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    note = f"# parts are switched off: save the edit first, as {SAVED}\n" if session.off else ""
    return note + shlex.join(words), "\n".join(lines)
