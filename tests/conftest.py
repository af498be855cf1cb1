"""Two profiles of the property tests: the same examples in every run, and many others."""

from hypothesis import HealthCheck, settings

# a busy machine would fail the check of how quickly examples are drawn
settings.register_profile("lit_adv", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# pytest tests/fuzz --hypothesis-profile=fuzz --hypothesis-seed=7
settings.register_profile("fuzz", settings.get_profile("lit_adv"), derandomize=False, max_examples=1000, database=None)
settings.load_profile("lit_adv")
