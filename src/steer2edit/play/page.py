"""The page: Gradio's controls around what the other modules make. The only one that imports Gradio."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gradio as gr

from steer2edit.errors import InvalidValueError, Steer2EditError
from steer2edit.models import Sampling
from steer2edit.play import markup
from steer2edit.play.replies import ask_all, talk
from steer2edit.play.stage import Session, Stage
from steer2edit.play.words import SAVED, as_code

_PROMPT = "Write a letter to my bank."
_SWITCH = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-name]');
  if (button) trigger('click', {name: button.dataset.name});
});"""
Shown = Iterator[dict[Any, Any]]
"""What changes on the page, by component."""


def _told(handler: Callable[..., Shown]) -> Callable[..., Shown]:
    """What a visitor can resolve is said on the page."""

    @wraps(handler)
    def run(page: "Page", *given: Any) -> Shown:
        try:
            yield {page.status: ""}
            yield from handler(page, *given)
        except Steer2EditError as error:
            yield {page.status: markup.alert(str(error))}

    return run


class Page:
    """The page of a stage. Every handler gets the visitor's session and what the controls say."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        with gr.Blocks(title="steer2edit", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self.session, self.said = gr.State(None), gr.State(None)  # apart: one may change while a reply grows
            gr.HTML(markup.note(f"steer2edit: {stage.model.name}, base, steered and edited side by side"))
            self._controls(stage.first)
            self.status, self.replies = gr.HTML(elem_id="status"), gr.HTML(elem_id="replies")
            self._tabs()
            self._wire()

    def _controls(self, first: Session) -> None:
        with gr.Row():
            self.prompt = gr.Textbox(_PROMPT, label="Prompt", elem_id="prompt", scale=4, min_width=240)
            self.send, self.stop, self.restart = (
                gr.Button(
                    name, elem_id=name.lower(), min_width=80, variant="primary" if name == "Send" else "secondary"
                )
                for name in ("Send", "Stop", "Restart")
            )
        with gr.Row():
            with gr.Column(min_width=240):
                self.edit = gr.Dropdown(**_choices(first.edits, first.edit), label="Edit")
                self.strength = gr.Slider(-1, 2, 1, step=0.05, label="Strength of the edit", elem_id="strength")
                self.match = gr.Button("Match steering to the edit as it is set now", size="sm", elem_id="match")
            with gr.Column(min_width=240):
                self.steering = gr.Dropdown(**_choices(first.vectors, first.steering), label="Steering")
                self.drift = gr.Slider(-1, 2, 1, step=0.05, label="Steering, 1 = equal drift", elem_id="drift")
                self.unit = gr.HTML(elem_id="unit")
        with gr.Row():
            self.tokens = gr.Slider(1, 512, first.sampling.max_new_tokens, step=1, label="Longest reply, in tokens")
            self.temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature, 0 for the likeliest words")

    def _tabs(self) -> None:
        with gr.Tab("Components"), gr.Row():
            with gr.Column(min_width=280):
                self.map = gr.HTML(elem_id="map", js_on_load=_SWITCH)
            with gr.Column(min_width=240):
                self.top = gr.HTML(elem_id="top", js_on_load=_SWITCH)
                self.all_on = gr.Button("Switch all on", size="sm", elem_id="all-on")
        with gr.Tab("Set of prompts"):
            self.prompts = gr.Textbox(label="Prompts, one in each line", lines=5, elem_id="prompts")
            self.ask = gr.Button("Ask all", elem_id="ask")
            self.summary, self.verdicts = gr.HTML(elem_id="summary"), gr.HTML(elem_id="verdicts")
        with gr.Tab("As code"):
            self.command, self.python = (
                gr.Textbox(label=name, elem_id=name.lower(), buttons=["copy"], interactive=False, lines=2)
                for name in ("Command", "Python")
            )
        with gr.Tab("Load and save"):
            drop = "Drop all files of an edit's folder, or vectors"
            self.files = gr.File(label=drop, file_count="multiple", elem_id="files")
            self.name = gr.Textbox(SAVED, label="Save strength and chosen components as", elem_id="name")
            self.save, self.saved = gr.Button("Save as a new edit", elem_id="save"), gr.HTML(elem_id="saved")
            self.download = gr.File(label="The new edit", file_count="multiple", visible=False, interactive=False)

    def _wire(self) -> None:
        controls = [
            self.session, self.said, self.prompt, self.edit, self.strength, self.steering, self.drift, self.tokens,
            self.temperature,
        ]  # fmt: skip
        outputs = [
            self.session, self.said, self.status, self.unit, self.replies, self.map, self.top, self.command,
            self.python, self.summary, self.verdicts, self.edit, self.steering, self.saved, self.download,
        ]  # fmt: skip

        def on(trigger: Any, handler: Callable[..., Shown], *others: Any) -> Any:
            return trigger(handler, [*controls, *others], outputs, show_progress="minimal", api_visibility="private")

        sliders = (self.strength, self.drift, self.tokens, self.temperature)
        for trigger in (self.blocks.load, self.edit.input, self.steering.input, *(one.release for one in sliders)):
            on(trigger, self._changing(lambda now: now))
        running = [on(trigger, self._answer) for trigger in (self.send.click, self.prompt.submit)]
        for trigger in (self.stop.click, self.restart.click):
            trigger(None, cancels=running)
        on(self.restart.click, self._changing(lambda now: replace(now, turns={}, added=None), self.replies, self.said))
        on(self.match.click, self._changing(lambda now: replace(now, matched=(now.strength, now.off))))
        on(self.all_on.click, self._changing(lambda now: replace(now, off=frozenset())))
        for switches in (self.map, self.top):
            on(switches.click, self._switch)
        on(self.ask.click, self._ask, self.prompts)
        on(self.files.upload, self._receive, self.files)
        on(self.save.click, self._save, self.name)

    def _read(self, session: Session | None, said: Session | None, prompt: str, *controls: Any) -> tuple[Session, str]:
        """The session as the controls have it, and the prompt."""
        edit, strength, steering, drift, tokens, temperature = controls
        others = {"strength": float(strength), "drift": float(drift)}
        sampling = Sampling(int(tokens), float(temperature))
        now = (session or self._stage.first).choosing(edit or None, steering or None, sampling=sampling, **others)
        if said:
            now = replace(now, turns=said.turns, added=said.added if said.edit == now.edit else None)
        return now, prompt

    def _shown(self, session: Session, prompt: str) -> dict[Any, Any]:
        """All that follows from the session."""
        command, python = as_code(self._stage, session, prompt or _PROMPT)
        found = ""
        if unit := self._stage.unit(session):
            found = f"1 is strength {unit.strength:.3g}: KL {unit.drift:.3g} on benign requests"
            found += f", as of the edit at {session.matched[0]:g}" if session.edit is not None else ""
        return {
            self.session: session, self.unit: markup.note(found), self.map: markup.component_map(session),
            self.top: markup.component_list(session), self.command: command, self.python: python,
        }  # fmt: skip

    def _changing(self, change: Callable[[Session], Session], *emptied: Any) -> Callable[..., Shown]:
        """A handler that changes the session, and empties some of the page."""

        @_told
        def handler(page: Page, *given: Any) -> Shown:
            session, prompt = page._read(*given)
            yield dict.fromkeys(emptied, "") | page._shown(change(session), prompt)

        return partial(handler, self)

    @_told
    def _switch(self, event: gr.EventData, *given: Any) -> Shown:
        session, prompt = self._read(*given)
        yield self._shown(session.switched(str(event.name)), prompt)

    @_told
    def _answer(self, *given: Any) -> Shown:
        session, prompt = self._read(*given)
        for turn in talk(self._stage, session, prompt):
            yield {self.replies: markup.replies(turn.answers, session, prompt, busy=turn.session is None)}
            if turn.session is not None:
                shown = self._shown(turn.session, prompt)
                yield {self.said: turn.session, **{one: shown[one] for one in (self.top, self.command, self.python)}}

    @_told
    def _ask(self, *given: Any) -> Shown:
        *controls, text = given
        session, _ = self._read(*controls)
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        conditions, by_prompt = ask_all(self._stage, session, prompts)
        yield {self.summary: markup.conditions(conditions), self.verdicts: markup.wide_table(by_prompt)}

    @_told
    def _receive(self, *given: Any) -> Shown:
        *controls, files = given
        session, prompt = self._read(*controls)
        session = self._stage.received(session, [Path(file) for file in files or ()])
        yield {
            self.edit: gr.update(**_choices(session.edits, session.edit)),
            self.steering: gr.update(**_choices(session.vectors, session.steering)),
            **self._shown(session, prompt),
        }

    @_told
    def _save(self, *given: Any) -> Shown:
        *controls, name = given
        place = self._stage.save(self._read(*controls)[0], name.strip())
        if self._stage.folder is not None:
            yield {self.saved: markup.note(f"Saved: {place}")}
        else:
            yield {self.download: gr.update(value=sorted(map(str, place.iterdir())), visible=True)}


def _choices(artifacts: Mapping[str, Any], chosen: str | None) -> dict[str, Any]:
    """Of a dropdown: artifacts by the last part of their path."""
    return {"choices": [("none", ""), *((Path(path).name, path) for path in artifacts)], "value": chosen or ""}


def serve(stage: Stage, host: str, port: int | None) -> Any:
    """Serve the page, in threads of its own, until `close`; an InvalidValueError if the port or address is no use."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks = Page(stage).blocks
    try:
        blocks.launch(
            server_name=host, server_port=port, theme=theme, css=markup.STYLE, quiet=True, share=False, ssr_mode=False,
            prevent_thread_lock=True, footer_links=[],
        )  # fmt: skip
    except OSError as error:
        place = f"port {port or '7860 and the next hundred'} of {host}"
        reason = f" ({error.strerror})" if error.strerror else ""  # without Gradio's advice, which is for its own users
        raise InvalidValueError(
            f"{place} cannot be used{reason}. If something else is served there, choose another --port."
        ) from error
    return blocks
