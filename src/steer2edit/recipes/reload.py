"""Greedy replies of a saved model in a fresh process, with plain transformers and PEFT: nothing of ours is imported.

Run as a script. Reads {"base", "adapter" or null, "dtype", "prompts", "max_new_tokens", "ends"} as JSON from stdin and
writes the replies as a JSON list of token ids to stdout. `ends` are the tokens that end a reply.
"""

import itertools
import json
import sys
from typing import Any


def replies(request: dict[str, Any]) -> list[list[int]]:
    """Token ids of every reply, up to the end token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(request["base"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(request["base"], dtype=request["dtype"])
    if request["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["adapter"])
    chats = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ends = request["ends"]
    config = GenerationConfig(max_new_tokens=request["max_new_tokens"], eos_token_id=ends, pad_token_id=ends[0])
    model.generation_config = config  # what the checkpoint recommends does not apply
    output = model.eval().generate(**batch, generation_config=config)
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in rows]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(replies(json.load(sys.stdin))))
