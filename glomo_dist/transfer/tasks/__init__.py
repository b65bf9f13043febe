"""One file per task. To add one, copy the nearest, and name it in `glomo_dist.transfer.task.TASKS`."""
