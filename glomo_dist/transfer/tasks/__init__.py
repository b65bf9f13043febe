"""One file per task of the package, named here. Others may lie anywhere."""

NAMES = (
    "sst2",
    "imdb",
    "snli",
    "mnli",
    "rte",
    "sick",
    "race",
    "squad",
    "mnist",
    "cifar10",
    "docstring",
    "digits",
)
