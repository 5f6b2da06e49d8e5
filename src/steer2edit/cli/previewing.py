"""What `convert` and `run` print of a preview."""

from typing import TYPE_CHECKING

from steer2edit.cli.console import say

if TYPE_CHECKING:
    from steer2edit.recipes.preview import Preview


def print_preview(seen: "Preview | None") -> None:
    """The replies below each request, and what they come to."""
    if seen is None:
        say("No preview: these vectors bring no validation rows to look at the edit with.")
        return
    say("\nPreview", style="bold")
    for index, prompt in enumerate(seen.prompts):
        say(f"  {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
        for name, replies in seen.replies.items():
            say(f"    {name}: {' '.join(replies[index].split())}")
    first, *others = seen.sentences
    say(first, style="bold")
    for sentence in others:
        say(sentence)
