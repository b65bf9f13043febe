"""A step and what it is made of: the batch, the objective, forward and backward passes, DeepSpeed's update."""
