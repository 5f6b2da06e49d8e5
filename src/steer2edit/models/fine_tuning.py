"""A short fine-tune of a model in memory: LoRA with PEFT, taken off again without a trace."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from steer2edit.core import WeightEdit
from steer2edit.errors import ModelError
from steer2edit.models.batching import pad
from steer2edit.models.chat import EncodedResponse, Prompt, encode_responses
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.reply import end_ids, turn_end
from steer2edit.progress import step

_IGNORED = -100  # transformers' label of a token without loss


@dataclass(frozen=True)
class FineTune:
    """How a model is fine-tuned."""

    steps: int  # of the optimiser
    batch: int = 8  # replies per step
    learning_rate: float = 5e-4  # of AdamW, constant
    rank: int = 8  # of the LoRA on every linear layer; its scaling is 2
    seed: int = 0  # of LoRA's initial values and of the order of the data


def training_rows(model: LanguageModel, pairs: Sequence[tuple[Prompt, str]]) -> list[EncodedResponse]:
    """(prompt, reply) pairs as tokens, each reply with its end token; a DataError where one is empty or too long."""
    end = turn_end(model)  # where the chat template has none, the first that ends replies
    own = tuple(end_ids(model)[:1]) if end is None else (end,)
    return [EncodedResponse((*row.ids, *own), row.start) for row in encode_responses(model, pairs)]


@contextmanager
def fine_tuned(model: LanguageModel, rows: Sequence[EncodedResponse], settings: FineTune) -> Iterator[list[float]]:
    """Run the model with a LoRA trained on replies; yields the loss of every step, in nats per token.

    The model's own weights are not touched: edits that are merged in when this is entered are what is fine-tuned.
    On leaving, the LoRA's modules are taken off, and every parameter is trainable or not as before.
    """
    from peft import LoraConfig, get_peft_model  # slow to import

    network = model.network
    trainable = {p: p.requires_grad for p in network.parameters()}
    own = set(vars(network))
    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        try:
            with warnings.catch_warnings():  # PEFT reads a property that transformers 5 renamed
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                wrapped = get_peft_model(network, config)
        except ValueError as error:
            raise ModelError(f"PEFT cannot put a LoRA on {model.name!r}: {error}") from error
    try:
        losses = _train(model, rows, settings)
        network.eval()
        yield losses
    finally:
        wrapped.unload()
        network.eval()
        for name in set(vars(network)) - own:  # PEFT leaves its config, and would add to it the next time
            delattr(network, name)
        for parameter, before in trainable.items():
            parameter.requires_grad_(before)


@torch.no_grad()
def edit_left(model: LanguageModel, edit: WeightEdit) -> float:
    """How much of an edit is still in the weights of a model that is fine-tuned: its projection on the edit.

        ⟨W' − W, ΔW⟩ / ‖ΔW‖² = 1 + ⟨D, ΔW⟩ / ‖ΔW‖²,   W' = W + ΔW + D

    1: the fine-tune left the edit, as it was merged, where it is, and what is lost of its gain was bypassed; 0: it took
    the edit out. Within `fine_tuned`.
    """
    changes = {
        module.base_layer.weight.data_ptr(): module.get_delta_weight(module.active_adapters[0]).float()
        for module in model.network.modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    product = size = 0.0
    for site, own in edit.sites.items():
        for projection in model.sites[site].projections:
            part = own.part(projection.columns).dense().to(model.device)
            size += float(part.square().sum())
            change = changes.get(projection.weight.data_ptr())
            if change is not None:
                product += float(((change if change.shape == part.shape else change.T) * part).sum())
    return 1 + product / size if size else 1.0


def _train(model: LanguageModel, rows: Sequence[EncodedResponse], settings: FineTune) -> list[float]:
    """Mean negative log-likelihood of the replies' tokens at every step."""
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    losses = []
    with step("Fine-tuning", settings.steps) as advance:
        for chosen in batches_of(len(rows), settings):
            own = [rows[i] for i in chosen]
            ids, mask = pad([row.ids for row in own], pad_id=0, device=model.device)
            labels = ids.masked_fill(mask == 0, _IGNORED)
            for i, row in enumerate(own):
                labels[i, : row.start] = _IGNORED
            loss = model.network(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            torch.autograd.backward(loss)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            advance(1)
    if not all(torch.isfinite(torch.tensor(losses))):
        raise ModelError(f"the fine-tune of {model.name!r} diverged: its loss is not finite. Lower the learning rate.")
    return losses


def batches_of(count: int, settings: FineTune) -> Iterator[list[int]]:
    """Indices of every step's rows: shuffled passes over the data, one behind the other."""
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            order += torch.randperm(count, generator=generator).tolist()
        yield order[: settings.batch]
        order = order[settings.batch :]
