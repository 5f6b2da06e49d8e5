"""A comparison of methods on a tiny model: which methods, where strengths come from, resuming, page and command."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import CountingEngine, random_vectors, silent, tiny_model

from steer2edit.artifacts import save_edit, save_vectors
from steer2edit.cli import app
from steer2edit.core import SiteEffects, SteeringVectors, WeightEdit
from steer2edit.editing import ablation, rosi
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.errors import DataError, InvalidValueError, MismatchError
from steer2edit.method.rule import output_direction
from steer2edit.models import LanguageModel
from steer2edit.report import write_comparison_page
from steer2edit.search.comparison import comparison_methods, run_comparison
from steer2edit.settings import ComparisonOptions
from steer2edit.steering.examples import prompt_digests
from steer2edit.steering.presets import built_in_requests, safety_prompts

OPTIONS = ComparisonOptions("safety", kls=(0.2, 0.05), limit=3)
MODEL = tiny_model()


def vectors(effects: bool = False) -> SteeringVectors:
    plain = random_vectors(MODEL)
    if not effects:
        return plain
    generator = torch.Generator().manual_seed(3)
    sites = {
        site: replace(
            means,
            effects=SiteEffects(
                output_direction(means.steering_vector),
                *(torch.rand(m.shape[1], generator=generator) for _ in range(3)),
                0.9,
            ),
        )
        for (site, means), m in zip(plain.sites.items(), MODEL.sites.values(), strict=True)
    }
    return replace(plain, sites=sites)


def given_edit() -> WeightEdit:
    return rosi(MODEL, {s: torch.ones(m.shape[0]) for s, m in list(MODEL.sites.items())[:2]})


class KilledError(Exception):
    """Stands for the end of the process."""


class Mortal(CountingEngine):
    """Dies at its n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__(TransformersEngine(MODEL))
        self._left = calls

    def _live(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise KilledError

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self._live()
        return super().generate(*args, **kwargs)

    def score(self, *args: Any, **kwargs: Any) -> Any:
        self._live()
        return super().score(*args, **kwargs)


def compared(out: Path, options: ComparisonOptions = OPTIONS, calls: int = 10**6, suppress: bool = False) -> Any:
    methods, left_out = comparison_methods(MODEL, VECTORS, {"mine": given_edit()}, suppress=suppress)
    engine = RememberingEngine(Mortal(calls))
    return run_comparison(engine, VECTORS, methods, options, out, silent, left_out=left_out)


VECTORS = vectors()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("comparison") / "run"
    return out, compared(out)


def test_methods() -> None:
    methods, left_out = comparison_methods(MODEL, vectors(effects=True), {"mine": given_edit()})
    assert list(methods) == ["steering", "paper", "effects", "gated", "rosi", "mine"]
    assert left_out == {}
    u = {site: output_direction(means.steering_vector) for site, means in VECTORS.sites.items()}
    assert methods["rosi"].identity == comparison_methods(MODEL, VECTORS, {"x": rosi(MODEL, u)})[0]["x"].identity
    methods, left_out = comparison_methods(MODEL, VECTORS, {}, suppress=True)
    assert list(methods) == ["steering", "paper", "rosi", "ablation"]
    assert list(left_out) == ["effects"]
    assert "--effects" in left_out["effects"]
    assert [methods[name].at(2.0).strength for name in methods] == [-2.0, -2.0, -2.0, 2.0]
    with pytest.raises(InvalidValueError, match="an edit is called 'rosi', as a method is: rename its directory"):
        comparison_methods(MODEL, VECTORS, {"rosi": given_edit()})


def test_every_method_is_measured_where_validation_items_say(found: tuple[Path, dict[str, Any]]) -> None:
    out, results = found
    assert list(results["methods"]) == ["steering", "paper", "rosi", "mine"]
    calibrated = json.loads((out / "calibrated.json").read_text())
    for name, conditions in results["methods"].items():
        assert [c["parameters"]["target_kl"] for c in conditions] == [0.05, 0.25]  # a quarter beyond the largest
        strengths = [c["parameters"]["strength"] for c in conditions]
        keys = [c["parameters"]["key"] for c in conditions]
        assert [key.split(",")[0] for key in keys] == [f"{name} at KL 0.05", f"{name} at KL 0.25"]
        assert strengths == [calibrated[key]["strength"] for key in keys]
        assert all(c["parameters"]["validation_kl"] == pytest.approx(kl, rel=0.16)
                   for c, kl in zip(conditions, (0.05, 0.25), strict=True))  # fmt: skip
    held_out = safety_prompts("held_out")
    assert results["prompts"] == {
        "harmful": held_out[0][:3], "benign": held_out[1][:3],
        "borderline": built_in_requests("borderline", "held_out")[:3],
    }  # fmt: skip
    assert set(results["base"]["metrics"]) == {
        "harmful_refused", "benign_refused", "borderline_refused", "nll_increase", "kl",
    }  # fmt: skip
    assert results["plan"]["second"] == ("benign_refused", "borderline_refused")
    assert set(results["figures"]["mine"]) >= {"at kl 0.05", "at kl 0.2", "kl at 0.3", "area borderline_refused"}
    assert json.loads(json.dumps(results["figures"], allow_nan=False))


def test_a_killed_comparison_goes_on(found: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for calls in (3, 25):  # while strengths are sought, while replies are made
        with pytest.raises(KilledError):
            compared(tmp_path / "run", calls=calls)
    assert json.loads((tmp_path / "run" / "held_out.json").read_text()).keys() > {"base"}
    again = compared(tmp_path / "run")
    assert again["methods"] == found[1]["methods"]
    assert again["figures"] == found[1]["figures"]
    done = compared(tmp_path / "run", calls=0)  # nothing is asked any more
    assert done["figures"] == again["figures"]


def test_another_comparison_is_refused(found: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(MismatchError, match=r"belongs to another comparison\. It differs in: items"):
        compared(found[0], replace(OPTIONS, limit=2))


def test_a_method_may_join_later(found: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(found[0], tmp_path / "run")
    engine = RememberingEngine(Mortal(10**6))
    u = {site: means.steering_vector for site, means in VECTORS.sites.items()}
    edits = {"mine": given_edit(), "another": ablation(MODEL, u)}
    methods, _ = comparison_methods(MODEL, VECTORS, edits)
    results = run_comparison(engine, VECTORS, methods, OPTIONS, tmp_path / "run", silent)
    assert list(results["methods"]) == ["steering", "paper", "rosi", "mine", "another"]
    assert {name: results["methods"][name] for name in found[1]["methods"]} == found[1]["methods"]
    before, after = (json.loads((run / "held_out.json").read_text()) for run in (found[0], tmp_path / "run"))
    assert len(after) == len(before) + 2
    changed = dict(methods) | {"mine": methods["another"]}  # the same name for another edit
    again = run_comparison(engine, VECTORS, changed, OPTIONS, tmp_path / "run", silent)
    assert again["methods"]["mine"] != results["methods"]["mine"]
    assert again["methods"]["steering"] == results["methods"]["steering"]


def test_prompts_that_vectors_were_made_from_are_refused(tmp_path: Path) -> None:
    seen = replace(VECTORS, metadata={**VECTORS.metadata, "prompts": prompt_digests(safety_prompts("held_out")[0][:1])})
    methods, _ = comparison_methods(MODEL, VECTORS, {})
    with pytest.raises(DataError, match="1 prompts are among both the vector and the held-out prompts"):
        run_comparison(TransformersEngine(MODEL), seen, methods, OPTIONS, tmp_path / "run", silent)


def test_suppressing(tmp_path: Path) -> None:
    options = ComparisonOptions("conciseness", kls=(0.05,), limit=2, suppress=True)
    results = compared(tmp_path / "run", options, suppress=True)
    assert results["plan"]["direction"] == 1  # of tokens: conciseness wants fewer
    assert results["plan"]["second"] == ("nll_increase",)
    assert "kl at 0.3" not in results["figures"]["ablation"]


@pytest.mark.parametrize("kl", [0.0, -0.1, float("inf"), float("nan")])
def test_bad_drifts(kl: float) -> None:
    with pytest.raises(InvalidValueError, match=r"kls must be (> 0|finite), got"):
        ComparisonOptions(kls=(0.1, kl))


def test_page(found: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    results = json.loads(json.dumps(found[1]).replace('"mine"', json.dumps(hostile)))
    write_comparison_page(results, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert hostile not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, flags=re.DOTALL)
    assert block is not None
    figures = json.loads(block[1])
    assert set(figures) == {"curves-kl", "curves-benign_refused", "curves-borderline_refused"}
    lines = [trace for trace in figures["curves-kl"]["data"] if trace["mode"] == "lines+markers"]
    assert [trace["name"] for trace in lines] == ["steering", "paper", "rosi", "&lt;img src=x onerror=alert(1)&gt;"]
    assert len(lines[0]["x"]) == 3  # the base, and two strengths
    results["figures"] = {"steering": {"at": {"label": 3}}}
    with pytest.raises(DataError, match="these are not the results of a run"):
        write_comparison_page(results, tmp_path / "page.html")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    MODEL.network.save_pretrained(base)
    MODEL.tokenizer.save_pretrained(base)
    model = LanguageModel(MODEL.network, MODEL.tokenizer, name=str(base))
    save_vectors(VECTORS, tmp_path / "v.safetensors")
    save_edit(model, given_edit(), tmp_path / "mine")
    typed = [
        "compare", str(base), str(tmp_path / "v.safetensors"), "--behaviour", "safety", "--edit",
        str(tmp_path / "mine"), "--kl", "0.1", "--limit", "2", "--out", str(tmp_path / "run"), "--allow-mismatch",
    ]  # fmt: skip
    app(typed, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "Against steering" in printed
    assert "effects is left out: the vectors have no measured effects" in printed
    assert (tmp_path / "run" / "report.html").is_file()
    app([*typed, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["kind"] == "comparison"
    (tmp_path / "run" / "report.html").unlink()
    app(["report", str(tmp_path / "run")], standalone_mode=False)
    assert (tmp_path / "run" / "report.html").is_file()
