"""What users of the installed package rely on, beside what it computes."""

import inspect

import pytest

import sklearn_moe

PUBLIC = [
    (name, value)
    for name, value in ((name, getattr(sklearn_moe, name)) for name in sklearn_moe.__all__)
    if callable(value)
]


def _functions(value):
    """Yield a function, or the constructor and the public methods that a class defines."""
    if not inspect.isclass(value):
        yield value
        return
    for owner in value.__mro__:
        if owner.__module__.startswith("sklearn_moe"):
            for name, method in vars(owner).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                if inspect.isfunction(method) and (name == "__init__" or name[0] != "_"):
                    yield method


@pytest.mark.parametrize("name, value", PUBLIC, ids=[name for name, _ in PUBLIC])
def test_the_public_surface_has_annotations(name, value):
    for function in _functions(value):
        is_ours = function.__module__.startswith("sklearn_moe")
        if not (is_ours and function.__code__.co_filename.endswith(".py")):  # or by dataclass
            continue
        signature = inspect.signature(function)
        missing = [
            each.name
            for each in signature.parameters.values()
            if each.annotation is each.empty and each.name not in ("self", "cls")
        ]
        assert not missing, function.__qualname__
        returns = signature.return_annotation is not inspect.Signature.empty
        assert returns or function.__name__ == "__init__", function.__qualname__
