"""vLLM as the engine: every edit a rank-1 LoRA adapter, chosen request by request in one running model.

Shapes: t = tokens of a response, v = vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from steer2edit.core import Editing, Intervention
from steer2edit.engines.requests import Request, ResponseScore, identity, response_score
from steer2edit.engines.vllm_package import (
    adapters,
    as_edit,
    checkpoint_of,
    edit_groups,
    import_vllm,
    llm_settings,
    own_score,
    start,
    whole_distributions,
)
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import EncodedResponse, LanguageModel, Reply, Sampling, encode_prompts
from steer2edit.models.reply import end_ids, reply_of
from steer2edit.progress import Advance, step

_LOWEST_TEMPERATURE = 0.01  # vLLM raises anything between 0 and this to this
_WIDE_ENTRIES = 2**23  # (position, vocabulary entry) pairs of one call: vLLM holds about 100 bytes for each


class VllmEngine:
    """Runs requests in vLLM. Edits only: activation steering cannot be expressed as an adapter.

    Args:
        model: the base model, for its tokenizer, chat template and site names. Load it on the CPU where vLLM is to
            have the accelerator for itself.
        checkpoint: directory or Hub id that vLLM loads; by default where `model` was loaded from.
        max_edits: different edits that one batch may hold. More edits run in groups of this many.
        engine_args: further arguments of `vllm.LLM`: `tensor_parallel_size`, `gpu_memory_utilization`, `dtype`
            (default: the model's own), `max_model_len`, ...

    Raises:
        ModelError: vLLM is not installed, or cannot run the checkpoint.
        InvalidValueError: `max_edits` < 1, or an engine argument that this engine sets itself.
    """

    def __init__(
        self,
        model: LanguageModel,
        checkpoint: Path | str | None = None,
        *,
        max_edits: int = 16,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._vllm = import_vllm()
        self.model = model
        self._max_edits, self._numbers = max_edits, count(1)
        settings = llm_settings(model, max_edits, engine_args or {})
        self._llm = start(self._vllm, checkpoint_of(model, checkpoint), settings)

    def close(self) -> None:
        """Stop vLLM's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """As `Engine.generate`.

        When sampling, a request's draws depend on the seed, its prompt and how often the same request came before in
        this call, not on the rest of the batch: a prompt is drawn with the same random numbers under every edit. A
        temperature that vLLM would change is refused.
        """
        edits = [as_edit(request.intervention) for request in requests]
        room, ends = sampling.max_new_tokens, end_ids(self.model)
        encoded = [tuple(ids) for ids in encode_prompts(self.model, [r.prompt for r in requests], room=room)]
        self._require_room([len(ids) for ids in encoded], room)
        draws = _draws(encoded, edits, sampling)
        params = [self._params(max_tokens=room, stop_token_ids=ends, **own) for own in draws]
        with step("Generating", len(requests)) as advance:
            outputs = self._run(encoded, edits, params, advance)
        return [
            reply_of(self.model, ids, list(output.outputs[0].token_ids), ends)
            for ids, output in zip(encoded, outputs, strict=True)
        ]

    def score(
        self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention], *, kl: bool = True
    ) -> list[list[ResponseScore]]:
        """As `Engine.score`.

        The KL is exact: vLLM returns the log-probability of the whole vocabulary at every position, and a
        distribution that lacks an entry is refused. A response needs room for one more token in the context. Responses
        are scored one after another, so that only one response's base is kept at a time.
        """
        edits = [as_edit(intervention) for intervention in interventions]
        self._require_room([len(response.ids) for response in responses], 1)
        if not edits:
            return []
        params = self._params(prompt_logprobs=-1 if kl else 0, flat_logprobs=True)
        unedited = [k for k, editing in enumerate(edits) if editing is None]
        runs = [*([None] if kl or unedited else []), *(k for k in range(len(edits)) if k not in unedited)]
        asked = [(r, k) for r in range(len(responses)) for k in runs]
        scores: list[dict[int, ResponseScore]] = [{} for _ in edits]
        base = torch.empty(0, 0)
        vocabulary = int(self._llm.model_config.get_vocab_size())
        with step("Scoring", len(asked)) as advance:
            for batch in _wide_batches([len(responses[r].ids) if kl else 0 for r, _ in asked], vocabulary):
                pairs = [asked[i] for i in batch]
                rows, used = [responses[r] for r, _ in pairs], [None if k is None else edits[k] for _, k in pairs]
                outputs = self._run([row.ids for row in rows], used, [params] * len(rows), advance)
                for (r, k), row, output in zip(pairs, rows, outputs, strict=True):
                    if kl:
                        found = whole_distributions(output.prompt_logprobs, row.start, vocabulary)
                        base = found if k is None else base  # it comes before the response's edits
                        one = response_score(row, base, found)
                    else:
                        one = own_score(output.prompt_logprobs, row.start)
                    for index in unedited if k is None else [k]:
                        scores[index][r] = one
        return [[by_response[r] for r in range(len(responses))] for by_response in scores]

    def _run(
        self,
        sequences: Sequence[tuple[int, ...]],
        edits: Sequence[Editing | None],
        params: Sequence[Any],
        advance: Advance,
    ) -> list[Any]:
        """What vLLM puts out for every sequence under its edit, in their order."""
        results: dict[int, Any] = {}
        for group in edit_groups(edits, self._max_edits):
            used = [edits[i] for i in group]
            # a slot is freed at once, not when it is needed: one must stay free (`llm_settings`)
            with adapters(self.model, used, self._numbers, self._llm.llm_engine.remove_lora) as folders:
                loras = {
                    key: self._vllm.lora.request.LoRARequest(f"edit-{number}", number, str(folder))
                    for key, (number, folder) in folders.items()
                }
                outputs = self._llm.generate(
                    [{"prompt_token_ids": list(sequences[i])} for i in group],
                    [params[i] for i in group],
                    lora_request=[None if editing is None else loras[identity(editing)] for editing in used],
                    use_tqdm=False,
                )
            results.update(zip(group, outputs, strict=True))
            advance(len(group))
        return [results[i] for i in range(len(sequences))]

    def _params(self, **settings: Any) -> Any:
        """Greedy and one token unless said otherwise; only our own end tokens end a reply."""
        defaults = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "ignore_eos": True}
        return self._vllm.SamplingParams(**{**defaults, **settings})

    def _require_room(self, lengths: Sequence[int], room: int) -> None:
        """vLLM would cut a reply short without saying so."""
        needed, limit = max(lengths, default=0) + room, self._llm.model_config.max_model_len
        if needed > limit:
            raise DataError(
                f"the longest of {len(lengths)} sequences needs {needed} tokens ({room} of them new), but vLLM runs "
                f"with max_model_len {limit}. Shorten it, or raise max_model_len in engine_args."
            )


def _wide_batches(positions: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """Consecutive sequences whose answers, `positions` whole distributions each, fit into memory together."""
    most = max(1, _WIDE_ENTRIES // vocabulary)
    batch: list[int] = []
    for index, own in enumerate(positions):
        if batch and sum(positions[i] for i in batch) + own > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _draws(
    encoded: Sequence[tuple[int, ...]], edits: Sequence[Editing | None], sampling: Sampling
) -> list[dict[str, Any]]:
    """Settings of each request's draws; none for greedy decoding."""
    if sampling.temperature == 0:
        return [{} for _ in encoded]
    if sampling.temperature < _LOWEST_TEMPERATURE:
        raise InvalidValueError(
            f"temperature must be 0 or at least {_LOWEST_TEMPERATURE} with vLLM, got {sampling.temperature:g}: vLLM "
            "would raise it to that. Use 0 for greedy decoding."
        )
    seen: Counter[object] = Counter()
    draws = []
    for ids, editing in zip(encoded, edits, strict=True):
        request = (ids, None if editing is None else identity(editing))
        digest = hashlib.sha256(repr((sampling.seed, seen[request], ids)).encode()).digest()
        seen[request] += 1
        seed = int.from_bytes(digest[:7], "big")
        draws.append({"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed})
    return draws
