# SPDX-License-Identifier: MIT
"""`dataclasses.dataclass`, whose methods are compiled when one of them is first called.

The standard decorator compiles up to six functions for each class that is defined, which takes half a millisecond. A
start defines a hundred classes and uses few of them.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        cls: type | None = None, *, frozen: bool = False, slots: bool = False, eq: bool = True
    ) -> Any:
        """Make a class a dataclass, as `dataclasses.dataclass` does. Not for `__post_init__` and InitVar."""
        if cls is None:
            return lambda cls: _dataclass(cls, frozen=frozen, slots=slots, eq=eq)
        return _dataclass(cls, frozen=frozen, slots=slots, eq=eq)


def _dataclass(bare: type, *, frozen: bool, slots: bool, eq: bool) -> Any:
    written = {name for name, value in vars(bare).items() if value is not None}
    # This compiles nothing: it finds the fields, and makes a class with slots of it.
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)(bare)
    names = ["__init__", "__repr__"]
    if eq:
        names.append("__eq__")
        if frozen:
            names.append("__hash__")
        elif "__hash__" not in written:
            made.__hash__ = None
    for name in names:
        if name == "__init__" or name not in written:
            setattr(made, name, _first_call(made, name, frozen=frozen))
    if frozen:
        made.__setattr__ = _refuse_to_assign
        made.__delattr__ = _refuse_to_delete
        if slots:
            made.__getstate__ = _state
            made.__setstate__ = _set_state
    return made


def _first_call(cls: type, name: str, *, frozen: bool) -> Any:
    """Return a method that replaces itself by the real one."""

    def method(*args: Any, **named: Any) -> Any:
        _compile(cls, name, frozen=frozen)
        return vars(cls)[name](*args, **named)

    return method


def _compile(cls: type, name: str, *, frozen: bool) -> None:
    """Give the class one method of the standard decorator's for a class of the same fields."""
    fields = dataclasses.fields(cls)
    body: dict[str, Any] = {
        field.name: dataclasses.field(
            default=field.default,
            default_factory=field.default_factory,
            init=field.init,
            repr=field.repr,
            hash=field.hash,
            compare=field.compare,
            kw_only=field.kw_only,
        )
        for field in fields
    }
    body["__annotations__"] = {field.name: field.type for field in fields}
    body["__module__"], body["__doc__"] = cls.__module__, cls.__doc__ or cls.__name__
    like: Any = dataclasses.dataclass(
        init=name == "__init__",
        repr=name == "__repr__",
        eq=name in ("__eq__", "__hash__"),
        frozen=frozen,
    )(type(cls.__name__, (), body))
    method = vars(like)[name]
    method.__qualname__ = f"{cls.__qualname__}.{name}"
    setattr(cls, name, method)


def _refuse_to_assign(_: object, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
