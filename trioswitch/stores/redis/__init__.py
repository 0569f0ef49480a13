"""The store on Redis. `store` is the store, `scripts` what Redis executes for it."""
