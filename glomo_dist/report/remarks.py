"""Sentences about the results: what is to be known before their numbers are compared."""

from __future__ import annotations

from collections.abc import Iterator

from glomo_dist.report.groups import Group
from glomo_dist.report.names import one_line
from glomo_dist.report.results import Results
from glomo_dist.transfer.datasets.dataset import left_out
from glomo_dist.transfer.features.coverage import MANY, percent


def cautions(results: Results) -> list[str]:
    """Those that stand below all tables."""
    return [
        *_several_sizes(results),
        *_several_versions(results),
        *_mostly_unknown(results),
        *_several_models(results),
    ]


def about_examples(group: Group) -> list[str]:
    """Those that stand beside the numbers of examples of a table: what was left out, and how many of the words are
    unknown to what reads them, as far as the results say it."""
    skipped = group.any.result.skipped
    sentences = [f"{one_line(left_out(skipped)).replace('left', 'Left', 1)}."] if skipped else []
    return sentences + [sentence for _, sentence in _unknown_words(group)]


def _unknown_words(group: Group) -> Iterator[tuple[float, str]]:
    """The share, and the sentence of it. The vectors are the same in the whole table, predictors may differ."""
    counted = [job.result.without_vector for job in group.finished if job.result.without_vector is not None]
    for share in counted[:1]:
        distinct = f"{percent(share.distinct)} of the distinct ones"
        yield share.words, f"{percent(share.words)} of the words have no vector ({distinct})."
    arms: dict[float, dict[str, None]] = {}
    for job in group.finished:
        if job.result.unknown_to_predictor is not None:
            arms.setdefault(job.result.unknown_to_predictor, {})[job.result.arm] = None
    for of_all, names in arms.items():
        predictor = f"the predictor (arm{'s'[: len(names) > 1]} {', '.join(map(one_line, names))})"
        yield of_all, f"{percent(of_all)} of the words are not in the vocabulary of {predictor}."


def _several_sizes(results: Results) -> list[str]:
    """A sentence for each table whose arms do not all have the same number of parameters."""
    found = []
    for group in results.groups:
        arms: dict[str, dict[str, None]] = {}  # sizes -> arms that have them
        for arm, seeds in group.arms.items():
            sizes = sorted({job.result.parameters for job in seeds.values()})
            arms.setdefault(" or ".join(f"{size:,}" for size in sizes), {})[one_line(arm)] = None
        if len({job.result.parameters for job in group.finished}) > 1:
            listed = "; ".join(f"{', '.join(names)}: {sizes}" for sizes, names in arms.items())
            found.append(
                f"{group.title}: the arms do not have the same number of parameters ({listed}), so that differences "
                "are not of the graphs alone. Where these differ in layers or heads, compare predictors of as many."
            )
    return found


def _several_versions(results: Results) -> list[str]:
    """A sentence for each table whose arms are not all of the same code."""
    found = []
    for group in results.groups:
        versions = {frozenset(job.result.code for job in seeds.values()) for seeds in group.arms.values()}
        if len(versions) > 1:
            listed = ", ".join(sorted(frozenset().union(*versions)))
            found.append(
                f"{group.title}: the arms were run by different versions of the program ({one_line(listed)}), so "
                "that differences may be theirs."
            )
    return found


def _mostly_unknown(results: Results) -> list[str]:
    return [
        f"{group.title}: {sentence}"
        for group in results.groups
        for share, sentence in _unknown_words(group)
        if share > MANY
    ]


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
