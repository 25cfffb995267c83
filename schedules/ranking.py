"""What the spaces of all families share: candidates that a target can hold, likely ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, TypeVar

from awq_tvm.errors import UnsupportedError

Config = TypeVar("Config")
Choice = TypeVar("Choice")


def ranked(
    default: Config,
    changed: Callable[[Choice], Config],
    choices: Iterable[Choice],
    cost: Callable[[Config], float],
) -> tuple[Config, ...]:
    """The default, then all other configurations that the target can hold, the cheapest first.

    Args:
        default: the family's configuration.
        changed: makes the configuration of a choice; raises UnsupportedError where sizes do not fit each other.
        choices: what can be chosen.
        cost: by a model of the target, infinite for what it does not hold.
    """
    costs: dict[Config, float] = {}
    for choice in choices:
        try:
            config = changed(choice)
        except UnsupportedError:
            continue
        if config != default and config not in costs:
            costs[config] = cost(config)
    held = [config for config, of_it in costs.items() if of_it < inf]
    return (default, *sorted(held, key=lambda config: costs[config]))


def with_place(items: tuple[Any, ...], place: int, other: Any) -> tuple[Any, ...]:
    """The items with another one at a place."""
    return (*items[:place], other, *items[place + 1 :])
