"""What holds for every test: no time limit for single Hypothesis examples, for machines are slow and noisy at times."""

from hypothesis import settings

settings.register_profile("baton", deadline=None)
settings.load_profile("baton")
