"""Settings of all tests."""

from hypothesis import settings

# the same examples every time, and no deadline: the machines that run this are of any speed
settings.register_profile("few", deadline=None, derandomize=True, max_examples=15)
settings.register_profile("many", deadline=None, max_examples=200)
settings.load_profile("few")
