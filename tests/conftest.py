"""One profile for all property tests: the same examples in every run, and nothing about time."""

from hypothesis import HealthCheck, settings

# a busy machine would fail the check of how quickly examples are drawn
settings.register_profile("lit_adv", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lit_adv")
