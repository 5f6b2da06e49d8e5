import itertools

import pytest
import torch
from torch import Tensor

from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.editing import merged
from steer2edit.errors import ModelError
from steer2edit.models import EncodedResponse, LanguageModel, span_log_probabilities, token_log_probabilities
from steer2edit.models.fine_tuning import FineTune, fine_tuned, training_rows
from tiny_chat import END, END_OF_TEXT, tiny_chat_model

PAIRS = [
    ("How do I bake bread?", "Mix the flour, the water and the salt."),
    ("What is a joke?", "Here is what I can do:\n\n  - tell you a joke\n"),
    ("Say one.", "one"),
]
SETTINGS = FineTune(steps=2, batch=2, learning_rate=1e-2)


def random_edit(model: LanguageModel) -> WeightEdit:
    generator = torch.Generator().manual_seed(1)

    def drawn(size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    counts = {site: module.component_count for site, module in model.sites.items()}
    sizes = {site: module.shape for site, module in model.sites.items()}
    return WeightEdit({s: SiteEdit(drawn(d), 0.1 * drawn(m), *torch.ones(2, counts[s])) for s, (d, m) in sizes.items()})


def logits(model: LanguageModel) -> Tensor:
    with torch.inference_mode():
        return model.network(input_ids=torch.arange(3, 27).view(2, 12)).logits


def state(model: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def hook_count(network: torch.nn.Module) -> int:
    return sum(
        len(hooks)
        for module in network.modules()
        for name, hooks in vars(module).items()
        if "hooks" in name and isinstance(hooks, dict)
    )


def look(model: LanguageModel) -> list[object]:
    """Everything a fine-tune might leave behind besides weights."""
    network = model.network
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    trainable = [p.requires_grad for p in network.parameters()]
    without_gradient = [p.grad is None for p in network.parameters()]
    return [modules, trainable, without_gradient, sorted(vars(network)), hook_count(network)]


def test_it_learns_and_leaves_no_trace() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    list(model.network.parameters())[1].requires_grad_(False)
    before, seen, plain = state(model), look(model), logits(model)
    rows = training_rows(model, PAIRS)
    for _ in range(2):  # PEFT warns where it finds what it has left behind
        with fine_tuned(model, rows, FineTune(steps=8, batch=3, learning_rate=3e-2)) as losses:
            assert len(losses) == 8
            assert losses[-1] < 0.8 * losses[0]
            assert not logits(model).equal(plain)
            assert not any(module.training for module in model.network.modules())
        after = state(model)
        assert before.keys() == after.keys()
        assert all(before[name].equal(after[name]) for name in before)
        assert look(model) == seen
        assert logits(model).equal(plain)


def test_it_leaves_no_trace_after_an_exception() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    before, seen = state(model), look(model)
    with pytest.raises(RuntimeError, match="inside"), fine_tuned(model, training_rows(model, PAIRS), SETTINGS):
        raise RuntimeError("inside")
    assert look(model) == seen
    assert all(tensor.equal(before[name]) for name, tensor in state(model).items())


def test_the_first_loss_is_that_of_the_replies_alone() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    rows = training_rows(model, PAIRS)
    with fine_tuned(model, rows, FineTune(steps=1, batch=3)) as losses:
        pass
    found = [token_log_probabilities(p, r) for p, r in zip(span_log_probabilities(model, rows), rows, strict=True)]
    assert losses[0] == pytest.approx(-torch.cat(found).mean().item(), rel=1e-4)


def test_what_is_merged_in_is_what_is_fine_tuned() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    rows = training_rows(model, PAIRS)
    edit, before = random_edit(model), state(model)
    with fine_tuned(model, rows, SETTINGS) as plain:
        pass
    with merged(model, edit), fine_tuned(model, rows, SETTINGS) as edited:
        pass
    with merged(model, edit):
        first = next(iter(fine_tuned_losses(model, rows)))
    assert edited[0] == first != plain[0]
    assert all(tensor.equal(before[name]) for name, tensor in state(model).items())


def fine_tuned_losses(model: LanguageModel, rows: list[EncodedResponse]) -> list[float]:
    with fine_tuned(model, rows, SETTINGS) as losses:
        return list(losses)


def test_the_same_seed_makes_the_same_model() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    rows = training_rows(model, PAIRS)
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 3)):
        torch.manual_seed(noise)
        with fine_tuned(model, rows, FineTune(steps=2, batch=2, seed=seed)):
            found.append(logits(model))
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_it_draws_nothing_from_the_callers_random_numbers() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with fine_tuned(model, training_rows(model, PAIRS), SETTINGS):
        pass
    assert torch.rand(1).equal(expected)


def test_every_reply_is_learnt_as_often_as_the_others() -> None:
    from steer2edit.models.fine_tuning import batches_of

    batches = list(batches_of(5, FineTune(steps=10, batch=4)))
    assert [len(batch) for batch in batches] == [4] * 10
    seen = list(itertools.chain.from_iterable(batches))
    assert [seen.count(i) for i in range(5)] == [8] * 5
    assert seen[:5] != seen[5:10]


def test_a_reply_is_learnt_with_the_token_that_ends_it() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    assert model.tokenizer is not None
    model.network.generation_config.eos_token_id = model.tokenizer.eos_token_id
    (row,) = training_rows(model, PAIRS[:1])
    assert row.ids[-1] == model.tokenizer.eos_token_id
    assert model.tokenizer.decode(row.response_ids[:-1]) == PAIRS[0][1]


def test_a_diverging_fine_tune_is_an_error() -> None:
    model = tiny_chat_model(num_hidden_layers=1)
    seen = look(model)
    rows = training_rows(model, PAIRS)
    settings = FineTune(steps=4, batch=3, learning_rate=1e30)
    with pytest.raises(ModelError, match="diverged"), fine_tuned(model, rows, settings):
        pass
    assert look(model) == seen


def test_the_end_of_a_turn_is_the_templates() -> None:
    """Llama-3 lists <|end_of_text|> before <|eot_id|>; its template writes the second."""
    model = tiny_chat_model(num_hidden_layers=1)
    assert model.tokenizer is not None
    end, other = (model.tokenizer.convert_tokens_to_ids(token) for token in (END, END_OF_TEXT))
    assert model.network.generation_config is not None
    model.network.generation_config.eos_token_id = [other, end]
    assert training_rows(model, PAIRS[2:])[0].ids[-1] == end
    model.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert training_rows(model, PAIRS[2:])[0].ids[-1] == other
