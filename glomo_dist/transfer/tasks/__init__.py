"""One file per task of the package, named in `glomo_dist.transfer.task.TASKS`. Others may lie anywhere."""
