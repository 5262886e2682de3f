# SPDX-License-Identifier: MIT
"""Classes of vftrace.dataclass behave as those of dataclasses do."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from vftrace import dataclass as lazy

OPTIONS: list[dict[str, bool]] = [
    {},
    {"frozen": True},
    {"frozen": True, "slots": True},
    {"slots": True},
    {"eq": False},
    {"frozen": True, "eq": False},
]


def two(options: dict[str, bool]) -> list[Any]:
    """A class made by the standard decorator, and one made by vftrace's."""

    def make(decorator: Any) -> Any:
        class Base:
            """Its fields come first."""

            first: int
            names: list[str] = dataclasses.field(default_factory=list)

        class Derived(decorator(**options)(Base)):  # type: ignore[misc]
            """With a field that is not compared."""

            last: int = dataclasses.field(default=7, compare=False)

        return decorator(**options)(Derived)

    return [make(dataclasses.dataclass), make(lazy.dataclass)]


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except (TypeError, AttributeError) as error:
        return type(error).__name__, str(error).partition("locals>.")[2] or str(error)


USES: dict[str, Callable[[Any], Any]] = {
    "made": lambda cls: dataclasses.astuple(cls(1, ["a"])),
    "by name": lambda cls: dataclasses.asdict(cls(last=3, first=1)),
    "own default": lambda cls: cls(1).names is cls(1).names,
    "missing": lambda cls: cls(),
    "too many": lambda cls: cls(1, [], 2, 3),
    "shown": lambda cls: repr(cls(1)).partition("locals>.")[2],
    "equal": lambda cls: cls(1) == cls(1),
    "equal but for one": lambda cls: cls(1, [], 8) == cls(1),
    "not equal": lambda cls: cls(1) == cls(2),
    "another class": lambda cls: cls(1) == 1,
    "base": lambda cls: cls(1) == cls.__mro__[1](1),
    "hash": lambda cls: (
        cls.__hash__ is object.__hash__
        or hash(cls(1, ())) == hash(cls(1, (), 8)) != hash(cls(2, ()))
    ),
    "replaced": lambda cls: dataclasses.astuple(dataclasses.replace(cls(1), first=5)),
    "assigned": lambda cls: setattr(cls(1), "first", 2),
    "deleted": lambda cls: delattr(cls(1), "first"),
    "copied": lambda cls: dataclasses.astuple(copy.copy(cls(1, [], 5))),
    "deeply": lambda cls: dataclasses.astuple(copy.deepcopy(cls(1, ["a"], 5))),
    "matched": lambda cls: cls.__match_args__,
    "fields": lambda cls: [(f.name, f.type, f.default) for f in dataclasses.fields(cls)],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_behaves_as_the_standard_one(options: dict[str, bool], use: str) -> None:
    standard, ours = two(options)
    expected = outcome(lambda: USES[use](standard))
    assert outcome(lambda: USES[use](ours)) == expected
    # Once more, with the method that has replaced itself.
    assert outcome(lambda: USES[use](ours)) == expected


@lazy.dataclass(frozen=True, slots=True)
class Kept:
    """For pickle, which finds a class by its name."""

    first: int

    def __repr__(self) -> str:
        return "its own"


def test_pickled() -> None:
    assert pickle.loads(pickle.dumps(Kept(1))) == Kept(1)


def test_a_method_of_its_own_stays() -> None:
    assert repr(Kept(1)) == "its own"
