"""What a run is to do: its settings, fitted to the shards, and what follows for DeepSpeed and the learning rates."""
