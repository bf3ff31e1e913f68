"""Turn a data set, as its makers hand it out, into ArrayRecord shards: `python -m sere_jax.data.prepare`."""
