"""A plan from its file, YAML or JSON, with what is wrong in it named by line or key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from glomo_dist.evaluate.executor import PLAN_FORMAT
from glomo_dist.evaluate.plan import EvaluationPlan
from glomo_dist.runtime.config import from_dict
from glomo_dist.runtime.errors import ConfigError, DataError, describe
from glomo_dist.runtime.json_files import read_json


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is given twice, where YAML silently takes the last: an arm would be gone."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Here, where what `<<` merges is not among the keys yet."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """With its line also where Python refuses the value: a 30 February, an int of 5,000 digits."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as e:  # each type has its own: ValueError, KeyError, AttributeError …
            problem = f"{node.value!r:.80} cannot be read: {describe(e)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def read_plan(path: str | Path) -> EvaluationPlan:
    """A plan from a .yaml, .yml or .json file, or of an evaluation from the plan.json that it left.

    ConfigError or DataError with the file and the key.
    """
    path = Path(path)
    if path.suffix == ".json":
        values = read_json(path, keys_once=True)
    elif path.suffix in (".yaml", ".yml"):
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist.") from None
        except OSError as e:
            raise DataError(f"{path} cannot be read ({describe(e)}). A plan is a file.") from None
        except UnicodeDecodeError as e:
            raise DataError(f"{path} is not UTF-8 text (byte {e.start}).") from None
        except yaml.YAMLError as e:
            mark = getattr(e, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise DataError(f"{path}{line}: not valid YAML ({getattr(e, 'problem', None) or e}).") from None
        except RecursionError:
            raise DataError(f"{path}: YAML that is nested too deeply.") from None
    else:
        raise ConfigError(f"{path}: a plan is a .yaml, .yml or .json file.")
    # what an evaluation left in its folder
    if isinstance(values, dict) and values.get("format") == PLAN_FORMAT:
        values = values.get("plan")
    if values is None:
        raise DataError(f"{path} is empty. A plan has at least tasks and arms.")
    return from_dict(EvaluationPlan, values, str(path))
