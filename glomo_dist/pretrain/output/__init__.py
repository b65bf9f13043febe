"""What comes out of a run: its folder and who may write there, log and trackers, checkpoints and their state."""
