"""The types of the configuration, held to what the rest of the project does with them."""

import re
from pathlib import Path

import msgspec
import pytest

import l7proxy
from l7proxy.config import model
from l7proxy.config.model import Part, Resource, Route
from l7proxy.filters import registry


def parts(cls: type = Part) -> list[type]:
    return [found for inner in cls.__subclasses__() for found in (inner, *parts(inner))]


def test_every_option_is_read_somewhere():
    """What is accepted and does nothing would be worse than what is refused."""
    folder = Path(l7proxy.__file__).parent
    code = "\n".join(file.read_text() for file in folder.rglob("*.py") if file != Path(model.__file__))
    unread = [
        f"{part.__name__}.{field.name}"
        for part in parts()
        if part.__module__ == model.__name__
        for field in msgspec.structs.fields(part)
        if not re.search(rf"\.{field.name}\b", code)
    ]
    assert unread == []


@pytest.mark.parametrize("policy", registry.FILTERS)
def test_every_policy_says_what_it_does_and_what_its_keys_are(policy):
    assert policy.__doc__ and policy.__doc__ != registry.Filter.__doc__
    described = msgspec.json.schema(policy)["$defs"][policy.__name__]["properties"]
    assert [name for name, key in described.items() if not key.get("description")] == []


def test_a_place_within_a_value_that_has_no_line_is_that_of_the_value():
    found = Resource("Route", "r", Route(), file="f", line=5, lines={"spec": 1, "spec.a": 2, "spec.a[0]": 3})
    assert found.where("spec.a[0].b.c") == ("f", 8)
    assert found.where("spec.a[1]") == ("f", 7)
    assert found.where("spec.b") == ("f", 6)
    assert found.where("other") == ("f", 5)
