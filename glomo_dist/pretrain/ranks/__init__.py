"""The processes of a run among themselves: their group, signals that ask them to stop, a watchdog beside each."""
