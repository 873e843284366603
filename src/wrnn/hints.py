"""Whether a value of a config is what an annotation asks for, and what that is in words."""

import collections.abc
import inspect
import os
import types
import typing
from typing import Any

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
_LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def fits(value: object, hint: Any) -> bool:
    """Whether `value`, made of numbers, text, lists and mappings, is of the annotated type.

    As in YAML, a list stands for every kind of sequence and text for a path; true and false are no numbers. What cannot
    be told, such as a type variable, fits.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    kind = origin or (type(None) if hint is None else hint)
    if kind in (Any, object, inspect.Parameter.empty) or not inspect.isclass(kind):
        return True
    if kind in _PLAIN:
        return isinstance(value, int | float if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
    if kind in _LISTS:
        return isinstance(value, list) and _elements_fit(value, kind, inner)
    if kind in _MAPPINGS:
        return isinstance(value, dict) and (not inner or all(fits(one, inner[-1]) for one in value.values()))
    return isinstance(value, str) if issubclass(kind, os.PathLike) else isinstance(value, kind)


def _elements_fit(value: list[object], kind: Any, inner: tuple[Any, ...]) -> bool:
    if not inner:
        return True
    if kind is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(fits(one, hint) for one, hint in zip(value, inner, strict=True))
    return all(fits(one, inner[0]) for one in value)


def in_words(hint: Any) -> str:
    """What an annotation asks for: `a number or null`, `a list of 2: a number, a number`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return in_words(inner[0])
    if origin in (typing.Union, types.UnionType):
        words = [in_words(one) for one in inner]
        return " or ".join(dict.fromkeys(word for word in words if word))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    kind = origin or (type(None) if hint is None else hint)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _LISTS:
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)}: {', '.join(map(in_words, inner))}"
        return f"a list of {in_words(inner[0])}" if inner else "a list"
    if kind in _MAPPINGS:
        return "a mapping"
    if inspect.isclass(kind) and issubclass(kind, os.PathLike):
        return "text"
    return f"a {getattr(kind, '__name__', kind)}, built from a _target_"
