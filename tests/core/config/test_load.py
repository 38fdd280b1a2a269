"""From file, environment and flags to one frozen configuration, or to every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.load import load_config, load_with_sources
from core.config.models import BatonConfig, SLOClass
from core.config.problems import ConfigErrors, ConfigProblem
from core.config.specs import named_pools

ROOT = Path(__file__).parents[3]


def written(tmp_path: Path, text: str) -> Path:
    """Write slo.yaml and give its path."""
    file = tmp_path / "slo.yaml"
    file.write_text(text)
    return file


def refused(path: Path | None, **kwargs: object) -> tuple[ConfigProblem, ...]:
    """Load what must be refused; give the problems."""
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, **{"environ": {}, **kwargs})  # type: ignore[arg-type]
    return caught.value.problems


def test_no_file_means_defaults() -> None:
    assert load_config(None, environ={}) == BatonConfig()


def test_an_empty_mapping_means_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "{}"), environ={}) == BatonConfig()


def test_later_layers_win(tmp_path: Path) -> None:
    file = written(tmp_path, "router: {port: 1, host: file, max_body_mb: 1}\nkv: {lease_s: 5}\n")
    config = load_config(
        file,
        overrides=["router.port=3"],
        environ={"BATON_ROUTER__PORT": "2", "BATON_ROUTER__HOST": "variable"},
    )
    router = config.router
    assert (router.port, router.host, router.max_body_mb, config.kv.lease_s) == (3, "variable", 1, 5)
    assert router.request_timeout_s == BatonConfig().router.request_timeout_s


def test_whole_numbers_do_for_any_number_and_lists_for_tuples(tmp_path: Path) -> None:
    text = "slo: {classes: {a: {ttft_ms: 400, tpot_ms: 40}}}\nmodel: {lora: [{name: a, path: b}]}\n"
    config = load_config(written(tmp_path, text), environ={})
    assert config.slo.classes == {"a": SLOClass(ttft_ms=400.0, tpot_ms=40.0)}
    assert [adapter.name for adapter in config.model.lora] == ["a"]


def test_engine_args_keep_their_types(tmp_path: Path) -> None:
    text = "model: {engine_args: {a: 1, b: 1.5, c: true, d: x, e: '1'}}"
    arguments = load_config(written(tmp_path, text), environ={}).model.engine_args
    assert [(key, type(value), value) for key, value in arguments.items()] == [
        ("a", int, 1),
        ("b", float, 1.5),
        ("c", bool, True),
        ("d", str, "x"),
        ("e", str, "1"),
    ]


def test_all_problems_of_all_layers_come_at_once_in_reading_order(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "slo:\n"
        "  classes:\n"
        "    chat: {ttft_s: 0.4, tpot_ms: 40ms}\n"
        "    chat: {}\n"
        "  default: nobody\n"
        "router:\n"
        "  prot: 8000\n"
        "pools: {prefill: {tensor_parallel: 2}}\n",
    )
    problems = refused(
        file,
        overrides=["ray.dashboard=1", "nonsense"],
        environ={"BATON_ROUTER__PORT": "99999", "BATON_KV_LEASE_S": "3"},
    )
    assert [(problem.source.removeprefix(f"{file}:"), problem.path) for problem in problems] == [
        ("3", "slo.classes.chat.tpot_ms"),
        ("3", "slo.classes.chat.ttft_s"),
        ("4", "slo.classes.chat"),
        ("5", "slo.default"),
        ("7", "router.prot"),
        ("8", "pools.decode.tensor_parallel"),
        ("BATON_KV_LEASE_S", ""),
        ("BATON_ROUTER__PORT", "router.port"),
        ("--set nonsense", ""),
        ("--set ray.dashboard=1", "ray.dashboard"),
    ]


def test_a_key_whose_value_was_refused_is_not_missing_too(tmp_path: Path) -> None:
    file = written(tmp_path, "slo: {classes: {chat: {ttft_ms: !x 1, tpot_ms: 1}}}")
    assert [problem.path for problem in refused(file)] == ["slo.classes.chat.ttft_ms"]


def test_pools_auto_is_kept_to_be_planned(tmp_path: Path) -> None:
    file = written(tmp_path, "router: {port: 1}\npools: auto\n")
    assert load_config(file, environ={}).pools == "auto"
    assert load_config(None, environ={"BATON_POOLS": "auto"}).pools == "auto"


def test_any_other_word_for_the_pools_is_refused_with_the_one_there_is(tmp_path: Path) -> None:
    [problem] = refused(written(tmp_path, "pools: atuo\n"))
    assert str(problem) == (
        f"{tmp_path}/slo.yaml:1: pools = atuo: is not one of the choices; allowed: section with the keys prefill, "
        "decode, or auto; did you mean auto?"
    )


@pytest.mark.parametrize(
    ("pools", "path", "words"),
    [
        ("3", "pools", "is a number"),
        ("", "pools", "is empty"),
        ("{prefil: {}}", "pools.prefil", "unknown key"),
        ("{decode: {replicas: '1'}}", "pools.decode.replicas", "is text"),
        ("{decode: {replicas: 0}}", "pools.decode.replicas", "must be at least 1: decode workers make the output"),
        ("{prefill: {replicas: 0}, decode: {replicas: 0}}", "pools.decode.replicas", "must be at least 1"),
    ],
)
def test_a_fault_within_the_pools_is_named_by_its_own_key(tmp_path: Path, pools: str, path: str, words: str) -> None:
    [problem] = refused(written(tmp_path, f"pools: {pools}\n"))
    assert problem.path == path
    assert words in problem.message


def test_no_prefill_worker_makes_one_pool(tmp_path: Path) -> None:
    text = "pools: {prefill: {replicas: 0}, decode: {tensor_parallel: 2}}"
    pools = named_pools(load_config(written(tmp_path, text), environ={}))
    assert (pools.prefill.replicas, pools.decode.replicas) == (0, 1)


def test_naming_a_pool_replaces_auto(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "pools: auto"), overrides=["pools.decode.replicas=3"], environ={})
    pools = named_pools(config)
    assert (pools.prefill.replicas, pools.decode.replicas) == (1, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"- a", "must be a mapping of sections"),
        (b"a: [", "YAML syntax"),
        (b"\xff\xfe\xff", "is not UTF-8 text"),
        (b"# x\n" * 300_000, "is larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_problem(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "slo.yaml"
    file.write_bytes(content)
    [problem] = refused(file, environ={"BATON_ROUTER__PORT": "wrong"})
    assert message in problem.message
    assert problem.source.startswith(str(file))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert [str(p) for p in refused(tmp_path / "no.yaml")] == [f"{tmp_path}/no.yaml: there is no such file"]
    assert [str(p) for p in refused(tmp_path)] == [f"{tmp_path}: is a folder, not a YAML file"]
    assert "cannot be read" in refused(tmp_path / ("x" * 5000))[0].message
    assert "cannot be read" in refused(Path("a\x00b"))[0].message


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / "slo.yaml"
    file.write_bytes(b"\xef\xbb\xbfrouter: {port: 1}\n")
    assert load_config(file, environ={}).router.port == 1


def test_sources_are_kept_for_those_who_ask(tmp_path: Path) -> None:
    file = written(tmp_path, "router:\n  port: 1\n")
    loaded = load_with_sources(file, overrides=["kv.lease_s=3"], environ={})
    assert loaded.tree.source_of(("router", "port")) == f"{file}:2"
    assert loaded.tree.source_of(("kv", "lease_s")) == "--set kv.lease_s=3"
    assert loaded.tree.source_of(("ray", "address")) == f"{file}:1", "the file begins where an absent section would be"
    assert loaded.tree.get(("ray", "address")) == (False, None)


SHIPPED = [ROOT / "deploy" / "slo.yaml", *sorted((ROOT / "deploy" / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in SHIPPED])
def test_shipped_configurations_load(name: str) -> None:
    config = load_config(ROOT / name, environ={})
    assert config.slo.default in config.slo.classes


def test_the_default_file_is_for_a_laptop_and_the_demonstration_model() -> None:
    config = load_config(ROOT / "deploy" / "slo.yaml", environ={})
    assert (config.model.path, config.model.name) == ("deploy/models/baton-demo", None)
    assert list(config.slo.classes) == ["interactive", "batch"]
    pools = named_pools(config)
    assert (pools.prefill.replicas, pools.decode.replicas) == (1, 1)
