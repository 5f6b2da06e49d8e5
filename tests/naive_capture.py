"""The slow way to capture: one response at a time, no padding, every activation kept, means in float64."""

from collections.abc import Sequence

import torch

from steer2edit.core import Site
from steer2edit.models import EncodedResponse, LanguageModel

Means = dict[Site, torch.Tensor]


def naive_means(model: LanguageModel, response: EncodedResponse) -> tuple[Means, Means]:
    """(mean input, mean output) of every site over the positions that predict the response's tokens."""
    inputs, outputs = activations(model, response.ids)
    first, last = response.start - 1, len(response.ids) - 1
    return (
        {site: x[first:last].double().mean(dim=0) for site, x in inputs.items()},
        {site: y[first:last].double().mean(dim=0) for site, y in outputs.items()},
    )


def activations(model: LanguageModel, ids: Sequence[int]) -> tuple[Means, Means]:
    """Every site's input and output at every position of one sequence."""
    inputs: Means = {}
    outputs: Means = {}
    handles = []
    for site, projection in model.sites.items():

        def keep(module, args, output, site=site):
            inputs[site] = args[0].reshape(-1, args[0].shape[-1]).clone()
            outputs[site] = output.reshape(-1, output.shape[-1]).clone()

        handles.append(model.network.get_submodule(projection.name).register_forward_hook(keep))
    with torch.inference_mode():
        model.network(input_ids=torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return inputs, outputs


def class_mean(means: Sequence[Means], site: Site) -> torch.Tensor:
    """Mean over responses, each weighing the same."""
    return torch.stack([m[site] for m in means]).mean(dim=0)
