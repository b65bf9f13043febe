"""From shards to the batches of a rank: which sample comes when, and readers that have it in time."""
