"""The configuration of `serve`: a TOML file, variables of the environment, and flags, the later before the former."""
