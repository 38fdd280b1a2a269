"""The pages say only what is so: every link, file, verb, flag, key, metric, header, route and message exists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.serving.sweep import read_sweep
from core.config.load import load_config
from core.config.tenants import read_tenants
from core.errors import (
    BatonError,
    ModelNotFound,
    PromptTooLong,
    RequestRejected,
    StartFailed,
    WorkerError,
    error_classes,
)
from core.policy.protocol import Policy
from core.types import ClusterView, RequestShape, Role, Route
from router.errors import status_of
from tests.support.doc_facts import CHECKS, metric_lies
from tests.support.doc_pages import Block, Page, pages
from tests.support.exported import kv_metrics, router_metrics
from tests.support.views import worker

PAGES = pages()
YAML_BLOCKS = [block for page in PAGES for block in page.blocks() if block.language == "yaml"]
MAX_LINES = 160
# Reference and records, which are looked up and not read through.
LONG = (
    "README.md",
    "docs/kv-transfer.md",
    "docs/configuration.md",
    "docs/benchmarks.md",
    "docs/router.md",
    "docs/kv-transfer.md",
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_pages_tell_no_lies(check: Callable[[Page], Iterator[str]]) -> None:
    found = [f"{page.path}: {lie}" for page in PAGES for lie in check(page)]
    assert not found, "\n  ".join(["", *found])


async def test_metrics_that_pages_name_are_exported(tmp_path: Path) -> None:
    text = await router_metrics() + kv_metrics(tmp_path)
    exported = set(re.findall(r"^# TYPE (\w+)", text, flags=re.MULTILINE)) | set(re.findall(r"^(\w+)[{ ]", text, re.M))
    lies = [f"{page.path}: {lie}" for page in PAGES for lie in metric_lies(page, exported)]
    assert not lies, "\n  ".join(["", *lies])


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.place)
def test_yaml_in_pages_is_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(block.text)
    keys = yaml.safe_load(block.text).keys()
    if "tenants" in keys:
        read_tenants(file)
    elif keys <= {"base", "sweep", "runs"}:
        assert read_sweep(file)
    else:
        load_config(file, overrides=(), environ={})


def test_the_policy_of_the_plug_in_page_does_what_the_page_says() -> None:
    (block,) = (b for page in PAGES if page.path == "docs/plug-ins.md" for b in page.blocks() if b.mode == "policy")
    module: dict[str, Any] = {"__name__": "tenant_home"}
    exec(compile(block.text, block.place, "exec"), module)
    policy: Policy = module["TenantHome"]()
    decoding = [worker(f"d{i}", Role.DECODE) for i in range(3)]
    view = ClusterView((worker("p0", Role.PREFILL, tokens=9), worker("p1", Role.PREFILL), *decoding))
    routes = {t: policy.decide(RequestShape(f"r-{t}", 10, 5, "chat", tenant=t), view, 0.0) for t in ("a", "b", "c")}
    assert {route.prefill for route in routes.values() if isinstance(route, Route)} == {"p1"}
    again = ClusterView(tuple(reversed(view.workers)))
    assert policy.decide(RequestShape("other", 99, 5, "chat", tenant="a"), again, 1.0) == routes["a"]
    alone = policy.decide(RequestShape("r", 10, 5, "chat", whole_only="n>1", tenant="a"), view, 0.0)
    assert isinstance(alone, Route)
    assert alone.prefill is None


# What a page would have to say for each check to find so many lies.
LIES = {
    "link_lies": (2, "[x](no-such-page.md) and [y](#no-such-heading)"),
    "path_lies": (1, "`deploy/no-such.yaml` and `deploy/slo.yaml`"),
    "verb_lies": (5, "`baton launch`, `baton up --loud`, `python -m bench.none`, `make coffee`, `--no-such-flag`"),
    "key_lies": (2, "`router.prot`, `pools.*.replicants` and `router.port`"),
    "header_lies": (1, "send x-baton-colour, not x-slo-class"),
    "variable_lies": (1, "BATON_NO_SUCH_THING, BATON_DEBUG"),
    "route_lies": (1, "`GET /v1/nothing`, `GET /health`"),
    "command_lies": (
        4,
        "```sh\nbaton.py up\n```\n<!-- test: parse -->\n```sh\nmake tea\npython baton.py up --loud\n```",
    ),
    "message_lies": (1, "| `the engine is on … holiday` | wait |\n| `the API key is unknown` | |"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_check_finds_lies(check: Callable[[Page], Iterator[str]]) -> None:
    count, text = LIES[check.__name__]
    found = list(check(Page("docs/troubleshooting.md", text)))
    assert len(found) == count, found


def test_a_metric_that_does_not_exist_is_found() -> None:
    page = Page("docs/README.md", "`baton_no_such_total` and `baton_held_requests`")
    assert len(list(metric_lies(page, {"baton_held_requests"}))) == 1


def test_the_index_names_every_page() -> None:
    (index,) = (page for page in PAGES if page.path == "docs/README.md")
    others = {page.path.removeprefix("docs/") for page in PAGES if page.path not in ("README.md", index.path)}
    assert others <= set(index.links())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_pages_are_short(page: Page) -> None:
    assert page.path in LONG or len(page.text.splitlines()) <= MAX_LINES, "split it, or make it shorter"


def test_errors_have_the_status_that_the_api_page_says() -> None:
    (page,) = (page for page in PAGES if page.path == "docs/api.md")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([\d, ]+) \|", page.text, flags=re.MULTILINE)
    told: dict[str, int] = {}
    for names, codes in rows:
        named, given = re.findall(r"\w+", names), [int(code) for code in codes.split(",")]
        told |= dict(zip(named, given if len(given) == len(named) else given * len(named), strict=True))
    clients_see = {cls.name: status_of(cls("")).code for cls in error_classes() if _reaches_clients(cls)}
    assert told == clients_see


def _reaches_clients(cls: type[BatonError]) -> bool:
    """Whether a client may get it from a router that has started; vLLM has names of its own for prompts and models."""
    ours = issubclass(cls, (RequestRejected, WorkerError)) and cls not in (RequestRejected, WorkerError)
    return ours and cls not in (PromptTooLong, ModelNotFound, StartFailed)
