"""The processes of a run: their group, signals that ask them to stop, a watchdog beside each, the word they leave."""
