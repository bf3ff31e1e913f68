"""From a data set, as its makers distribute it, to ArrayRecord shards."""
