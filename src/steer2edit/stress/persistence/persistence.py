"""Does the gain survive what happens to weights? Saving, casting, quantising, merging, and further training."""

from dataclasses import dataclass

from steer2edit.stress.persistence.further_training import FineTuned, MergedBack, MergedWithAnother
from steer2edit.stress.persistence.gain_left import gain_result
from steer2edit.stress.persistence.treatments import (
    FULL_FORMATS,
    QUICK_FORMATS,
    Bench,
    Casts,
    Quantised,
    SavedAndLoaded,
    Treatment,
)
from steer2edit.stress.stress_test import SUITES, Cost, Group, StressResult, StressTest, Subject, Suite


@dataclass(frozen=True)
class PersistenceTest:
    """Refusals of the base and of the edited model before and after a treatment of their weights.

    Args:
        name: of the test.
        summary: what is done.
        citation: where it is from.
        treatment: does it.
        suites: that it is in.
    """

    name: str
    summary: str
    citation: str
    treatment: Treatment
    suites: frozenset[Suite] = frozenset(SUITES)
    group: Group = "persistence"

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """Replies of every arm, and passes of training."""
        prompts = sum(map(len, Bench(subject, suite).prompts.values()))
        return Cost(prompts * self.treatment.arms(suite), self.treatment.passes(suite))

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """Lines on harmful and on benign requests after every variant of the treatment.

        Raises:
            ModelError: the model's weights are not there as plain numbers, or cannot be trained.
            MismatchError: the edit is of another shape, or (to be saved) of another model.
        """
        bench = Bench(subject, suite)
        base, edit = bench.plain()
        treated, facts = self.treatment.treat(bench)
        return gain_result(base, edit, treated, facts)


def tests() -> list[StressTest]:
    """The tests of persistence."""
    full: frozenset[Suite] = frozenset({"full"})
    tuned = "Qi et al. 2023, Fine-tuning aligned language models compromises safety, arXiv 2310.03693"
    return [
        PersistenceTest(
            "saved",
            "the edit saved as an adapter and as a checkpoint, and loaded again",
            "this project",
            SavedAndLoaded(),
        ),
        PersistenceTest("cast", "the edit in weights of bfloat16 and float16", "this project", Casts(), full),
        PersistenceTest(
            "quantised",
            "all linear layers stored in 8 and 4 bits: edited then stored, or an adapter on the stored base",
            "Dettmers et al. 2023, QLoRA, arXiv 2305.14314 (nf4); OCP Microscaling Formats 1.0 (mxfp4)",
            Quantised(QUICK_FORMATS, FULL_FORMATS),
        ),
        PersistenceTest(
            "merged-with-another",
            "another edit of the same norm in the same weights",
            "Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089",
            MergedWithAnother(),
        ),
        PersistenceTest(
            "merged-back",
            "a linear merge with the base at ratios of 0.25, 0.5 and 0.75",
            "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903",
            MergedBack(),
        ),
        PersistenceTest(
            "fine-tuned", "a short LoRA fine-tune on helpful answers to harmless requests", tuned, FineTuned(), full
        ),
    ]
