"""The playground: a page on which base, steered and edited model answer side by side. docs/guide.md.

Gradio is needed by `page` alone; everything that the page shows is made, and tested, without it.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported: the page asks no other host
