"""A file name that is not UTF-8 reaches Python with halves of surrogate pairs: what records it is written."""

import json
import os
from pathlib import Path

import torch

from steer2edit.artifacts import load_vectors, save_vectors
from steer2edit.cli.options import Measuring
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors

NAME = os.fsdecode(b"caf\xe9.csv")


def test_results_are_json(tmp_path: Path) -> None:
    results = {"conditions": [{"label": NAME, "replies": ["茶"]}], "comparisons": []}
    Measuring(out=tmp_path / "results.json").write(results)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text) == results
    assert "茶" in text  # what is text stays readable


def test_vectors_keep_the_name(tmp_path: Path) -> None:
    means = SiteMeans(ClassMeans(torch.ones(4), torch.zeros(4)))
    vectors = SteeringVectors({Site(0, "attn"): means}, metadata={"name": NAME}, diagnosis={"of": NAME})
    save_vectors(vectors, tmp_path / "v.safetensors")
    found = load_vectors(tmp_path / "v.safetensors")
    assert (found.metadata["name"], found.diagnosis) == (NAME, {"of": NAME})
