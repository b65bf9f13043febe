"""What a task model sees of each unit: vectors, an encoder's states, pixels; a task's examples as arrays of it."""
