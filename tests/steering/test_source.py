"""From what a user names to a contrast set."""

import json
from pathlib import Path

import pytest

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import LanguageModel, Sampling
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.contrast import load_contrast
from tiny_chat import tiny_chat_model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_chat_model()


def write_pairs(path: Path, count: int = 10, **more: object) -> Path:
    rows = [{"prompt": f"q{i}", "positive": f"yes {i}", "negative": f"no {i}", **more} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestPresets:
    def test_paired(self, model: LanguageModel) -> None:
        contrast = load_contrast("truthfulness", model)
        assert contrast.name == "truthfulness"
        assert contrast.describe()["counts"] == {
            "train": {"positive": 240, "negative": 240},
            "validation": {"positive": 80, "negative": 80},
        }

    def test_limit_is_per_split(self, model: LanguageModel) -> None:
        contrast = load_contrast("conciseness", model, limit=3)
        assert contrast.train.counts() == {"positive": 3, "negative": 3}
        assert contrast.validation.counts() == {"positive": 3, "negative": 3}
        assert {p for p, _ in contrast.train.positive} == {p for p, _ in contrast.train.negative}

    def test_safety_against_the_models_own_compliance(self, model: LanguageModel) -> None:
        contrast = load_contrast("safety", model, limit=3, sampling=Sampling(max_new_tokens=4))
        rows = find_behaviour("safety").examples()
        refused = {e.prompt: e.response for e in rows if e.label == "positive"}
        assert all(refused[prompt] == response for prompt, response in contrast.train.positive)
        assert {p for p, _ in contrast.train.negative} == {p for p, _ in contrast.train.positive}
        assert contrast.notes["generated"] == 6
        assert contrast.notes["labels"] == {"negative": 6}  # a random model does not refuse

    def test_the_presets_labeller_drops_refusals_from_the_negatives(self, model: LanguageModel, monkeypatch) -> None:
        from steer2edit.models import Reply

        monkeypatch.setattr(
            "steer2edit.steering.contrast.generate",
            lambda model, prompts, *a, **k: [
                Reply("I cannot do that." if i % 3 == 0 else "Sure.", (1,), True) for i in range(len(prompts))
            ],
        )
        contrast = load_contrast("safety", model, limit=6)
        assert contrast.train.counts() == {"positive": 6, "negative": 4}
        assert contrast.notes["labels"] == {"negative": 8, "positive": 4}

    def test_safety_against_benign(self, model: LanguageModel) -> None:
        contrast = load_contrast("safety-benign", model, limit=4)
        assert contrast.train.counts() == {"positive": 4, "negative": 4}
        assert not {p for p, _ in contrast.train.negative} & {p for p, _ in contrast.train.positive}
        assert contrast.notes["generated"] == 0


class TestFiles:
    @pytest.mark.parametrize("as_text", [True, False])
    def test_one_file(self, model: LanguageModel, tmp_path: Path, as_text: bool) -> None:
        path = write_pairs(tmp_path / "pairs.jsonl")
        contrast = load_contrast(str(path) if as_text else path, model)
        assert contrast.name == "pairs.jsonl"
        assert contrast.train.counts() == {"positive": 6, "negative": 6}
        assert contrast.validation.counts() == {"positive": 2, "negative": 2}

    def test_seed_moves_prompts_between_splits(self, model: LanguageModel, tmp_path: Path) -> None:
        path = write_pairs(tmp_path / "pairs.jsonl", 40)
        first, again, other = (load_contrast(path, model, seed=seed) for seed in (0, 0, 1))
        assert first.train == again.train != other.train

    def test_two_files(self, model: LanguageModel, tmp_path: Path) -> None:
        for name in ("good", "bad"):
            rows = [{"prompt": f"{name} {i}", "response": name, "split": "train"} for i in range(3)]
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        contrast = load_contrast((tmp_path / "good.json", tmp_path / "bad.json"), model)
        assert contrast.name == "good.json against bad.json"
        assert contrast.train.positive == tuple((f"good {i}", "good") for i in range(3))
        assert contrast.train.negative == tuple((f"bad {i}", "bad") for i in range(3))

    def test_prompts_alone_with_a_labeller(self, model: LanguageModel, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("".join(f"prompt number {i}\n" for i in range(20)))
        model.network.generation_config.eos_token_id = list(range(3, 90))  # replies of different lengths
        try:
            contrast = load_contrast(tmp_path / "prompts.txt", model, labeller="length", sampling=Sampling(12))
        finally:
            model.network.generation_config.eos_token_id = 2
        assert contrast.notes["generated"] == 16  # train and validation
        assert contrast.notes["labels"].keys() >= {"positive", "negative"}

    def test_prompts_alone_without_a_labeller(self, model: LanguageModel, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("a\nb\n")
        with pytest.raises(DataError, match=r"'prompts\.txt' has rows without a label"):
            load_contrast(tmp_path / "prompts.txt", model)

    def test_limit_per_split_of_a_file_that_names_them(self, model: LanguageModel, tmp_path: Path) -> None:
        path = write_pairs(tmp_path / "pairs.jsonl", 10, split="train")
        assert load_contrast(path, model, limit=4).train.counts() == {"positive": 4, "negative": 4}

    def test_limit_per_split_of_a_file_that_does_not(self, model: LanguageModel, tmp_path: Path) -> None:
        contrast = load_contrast(write_pairs(tmp_path / "pairs.jsonl", 40), model, limit=4)
        assert contrast.train.counts() == contrast.validation.counts() == {"positive": 4, "negative": 4}


class TestBadInput:
    def test_unknown_preset(self, model: LanguageModel) -> None:
        with pytest.raises(DataError, match="Did you mean 'truthfulness'"):
            load_contrast("truthfullness", model)

    def test_missing_file(self, model: LanguageModel) -> None:
        with pytest.raises(DataError, match=r"there is no file nowhere\.jsonl"):
            load_contrast("nowhere.jsonl", model)

    def test_unknown_labeller(self, model: LanguageModel) -> None:
        with pytest.raises(InvalidValueError, match="Did you mean 'length'"):
            load_contrast("truthfulness", model, labeller="lenght")
