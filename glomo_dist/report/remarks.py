"""Sentences about the results: what is to be known before their numbers are compared."""

from __future__ import annotations

from glomo_dist.report.results import Group, Results
from glomo_dist.transfer.coverage import MANY, percent


def cautions(results: Results) -> list[str]:
    """Those that stand below all tables."""
    return [*_mostly_unknown(results), *_several_models(results)]


def unknown_words(group: Group) -> list[str]:
    """How many words of the task are unknown to what reads them, as far as the results of a table say it."""
    for job in group.finished:
        if job.result.without_vector is not None:
            words, distinct = map(
                percent, (job.result.without_vector.words, job.result.without_vector.distinct)
            )
            return [f"{words} of the words have no vector ({distinct} of the distinct ones)."]
    return []


def _mostly_unknown(results: Results) -> list[str]:
    found = []
    for group in results.groups:
        shares = [job.result.without_vector.words for job in group.finished if job.result.without_vector]
        if shares and max(shares) > MANY:
            found.append(f"{group.title}: {percent(max(shares))} of the words have no vector.")
    return found


def _several_models(results: Results) -> list[str]:
    """A sentence for each arm whose row is a mean over graphs of different models, but for arms with a model, and a
    path of it, for each seed: random predictors."""
    found = []
    for group in results.groups:
        for arm, seeds in group.arms.items():
            models = [job.result.fingerprints.get("model") for job in seeds.values()]
            of_path: dict[str | None, set[str | None]] = {}
            for job, model in zip(seeds.values(), models, strict=True):
                of_path.setdefault(job.result.job["graphs"], set()).add(model)
            mixed = 1 < len(set(models)) < len(models)
            if mixed or any(len(of_one) > 1 for of_one in of_path.values()):
                folders = ", ".join(sorted({str(job.folder) for job in seeds.values()}))
                found.append(
                    f"{group.title}: the row of arm {arm!r} is a mean over graphs of different models ({folders})."
                )
    return found
