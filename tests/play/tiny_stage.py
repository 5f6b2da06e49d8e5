"""A tiny random model with an edit and vectors of it, as files and on a stage."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from families import random_site_means
from steer2edit.artifacts import save_edit, save_vectors
from steer2edit.core import SteeringVectors
from steer2edit.editing import convert
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import Sampling, load_model
from steer2edit.play.stage import Stage, read_artifacts
from tiny_chat import tiny_chat_model


@dataclass(frozen=True)
class Files:
    base: Path
    edit: Path
    vectors: Path


def write_files(folder: Path, seed: int = 0) -> Files:
    """Of one seed as of any other, but for the weights."""
    files = Files(folder / "base", folder / "mine", folder / "v.safetensors")
    made = tiny_chat_model(seed=seed)
    made.network.save_pretrained(files.base)
    assert made.tokenizer is not None
    made.tokenizer.save_pretrained(files.base)
    model = load_model(str(files.base))
    generator = torch.Generator().manual_seed(1)
    sites = {site: random_site_means(module, generator) for site, module in model.sites.items()}
    vectors = SteeringVectors(sites, {"model": model.describe()})
    save_vectors(vectors, files.vectors)
    save_edit(model, convert(model, vectors, Hyperparameters(0.2, 0.2, 0.1), force=True), files.edit)
    return files


def stage_of(files: Files, folder: Path | None = None, tokens: int = 8) -> Stage:
    first = replace(read_artifacts([files.edit, files.vectors]), sampling=Sampling(tokens))
    return Stage(load_model(str(files.base)), first, folder)
