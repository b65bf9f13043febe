"""Using graphs in a downstream model: tasks, features, the graph mixture, and one function that trains."""
