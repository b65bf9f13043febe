"""The modules that are trained on a task: the mixture of graphs, their fusion with features, and a reader."""
