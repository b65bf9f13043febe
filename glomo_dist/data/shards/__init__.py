"""What a folder of shards is: written, its index, and any sample of it checked."""
