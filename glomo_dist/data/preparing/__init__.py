"""From raw files to the documents and pictures of which shards are made."""
