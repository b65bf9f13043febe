"""A task's graphs: computed once from a frozen predictor (export), read back fast in training (store)."""
