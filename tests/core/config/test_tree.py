"""The untyped tree: values and where they came from."""

from __future__ import annotations

from core.config.tree import ConfigTree, dotted


def a_tree() -> ConfigTree:
    """A tree as a file would give it."""
    tree = ConfigTree(default_source="a.yaml")
    tree.root = {"router": {"port": 1, "host": "h"}, "model": {"lora": [{"name": "a"}]}}
    tree.sources = {
        ("router",): "a.yaml:1",
        ("router", "port"): "a.yaml:2",
        ("model", "lora"): "a.yaml:4",
        ("model", "lora", 0, "name"): "a.yaml:5",
    }
    return tree


def test_paths_are_written_as_people_do() -> None:
    assert dotted(("model", "lora", 0, "name")) == "model.lora[0].name"
    assert dotted(()) == ""


def test_get_tells_absent_from_null() -> None:
    tree = a_tree()
    tree.set(("model", "name"), None, "x")
    assert tree.get(("model", "name")) == (True, None)
    assert tree.get(("model", "dtype")) == (False, None)
    assert tree.get(("router", "port", "deeper")) == (False, None)
    assert tree.get(("model", "lora", 1)) == (False, None)


def test_set_replaces_a_value_and_its_source_only() -> None:
    tree = a_tree()
    tree.set(("router", "port"), 2, "--set router.port=2")
    assert tree.root["router"] == {"port": 2, "host": "h"}
    assert tree.source_of(("router", "port")) == "--set router.port=2"
    assert tree.source_of(("router", "host")) == "a.yaml:1"


def test_set_makes_missing_parents_which_share_its_source() -> None:
    tree = a_tree()
    tree.set(("slo", "classes", "chat", "ttft_ms"), 5, "FLAG")
    assert tree.root["slo"] == {"classes": {"chat": {"ttft_ms": 5}}}
    assert tree.source_of(("slo", "classes", "chat", "tpot_ms")) == "FLAG"


def test_set_below_a_plain_value_makes_it_a_mapping() -> None:
    tree = a_tree()
    tree.set(("router", "port", "x"), 5, "FLAG")
    assert tree.get(("router", "port")) == (True, {"x": 5})
    assert tree.source_of(("router", "port")) == "FLAG"


def test_set_reaches_into_lists_but_does_not_lengthen_them() -> None:
    tree = a_tree()
    tree.set(("model", "lora", 0, "name"), "b", "FLAG")
    assert tree.get(("model", "lora")) == (True, [{"name": "b"}])
    tree.set(("model", "lora", "x"), "b", "FLAG")
    assert tree.get(("model", "lora")) == (True, {"x": "b"})


def test_a_replaced_section_forgets_the_lines_of_its_keys() -> None:
    tree = a_tree()
    tree.set(("router",), {"port": 3}, "FLAG")
    assert tree.source_of(("router", "port")) == "FLAG"


def test_what_was_never_given_has_the_default_source() -> None:
    assert ConfigTree().source_of(("router", "port")) == "default"
    assert a_tree().keys(("router",)) == ("port", "host")
    assert a_tree().keys(("router", "port")) == ()
