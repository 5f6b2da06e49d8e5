"""What a user's type checker sees: `make lint` checks this file as theirs would, and it is never run."""

import steer2edit as s2e
from steer2edit.core import Editing
from steer2edit.engines import Request

model = s2e.load("smollm2", dtype="bfloat16")
vectors = s2e.extract(model, [("Name a fish.", "A cod, matey.", "A cod.")], effects=True)
edit = s2e.convert(model, vectors, rho_attn=0.15, alpha=0.5)
with edit.on(model, 0.7):
    reply: str = model.reply("What is a prime number?")
results = s2e.evaluate(model, [vectors @ 0.2, edit], "safety")
(0.5 * edit + edit).save("both")
best = s2e.search(model, vectors, "safety", out="search").edit
contract = s2e.stress(model, edit, vectors, only=["static"])
request = Request("What is a prime number?", Editing(edit))
