"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)  # the machines that run this are of any speed
settings.load_profile("patient")
