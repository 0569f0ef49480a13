from hypothesis import settings

# The same examples each time: a test that fails here fails everywhere.
settings.register_profile("trioswitch", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("trioswitch")
