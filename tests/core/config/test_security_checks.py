"""The section `security`: complete, readable, fitting; and the specs that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.component_tls import ComponentTLS
from core.config.checks import check_across
from core.config.models import BatonConfig
from core.config.specs import component_tls
from core.config.yaml_text import read_yaml
from tests.support.certificates import Authority, make_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority(tmp_path, "ca").issue("node")
    make_pair(tmp_path, "other")
    return tmp_path


def breaches(yaml: str, base: Path) -> list[tuple[str, str]]:
    tree, problems = read_yaml(yaml, file="a.yaml")
    assert problems == []
    return [(problem.path, problem.message) for problem in check_across(tree, base=base)]


def test_nothing_is_asked_of_what_is_not_named(folder: Path) -> None:
    assert breaches("security: {name: other}", folder) == []


def test_good_files_are_accepted(folder: Path) -> None:
    assert breaches("security: {ca: ca.crt, cert: node.crt, key: node.key}", folder) == []


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ("ca: ca.crt", "security.ca", "needs security.cert and security.key beside it"),
        ("cert: node.crt, key: node.key", "security.cert", "needs security.ca beside it"),
        ("ca: none, cert: node.crt, key: node.key", "security.ca", "there is no file"),
        ("ca: node.key, cert: node.crt, key: node.key", "security.ca", "holds no certificate"),
        ("ca: ca.crt, cert: node.key, key: node.key", "security.cert", "holds no certificate in PEM form"),
        ("ca: ca.crt, cert: node.crt, key: other.key", "security.key", "is not the key of the certificate"),
    ],
)
def test_what_does_not_fit_is_a_problem_of_its_key(folder: Path, given: str, path: str, message: str) -> None:
    [(where, found)] = breaches(f"security: {{{given}}}", folder)
    assert where == path
    assert message in found


def test_paths_become_absolute_and_secrets_stay_in_their_files(folder: Path) -> None:
    section = {"ca": "ca.crt", "cert": "node.crt", "key": "node.key", "name": "east"}
    config = BatonConfig.model_validate({"security": section})
    places = [str(folder / name) for name in ("ca.crt", "node.crt", "node.key")]
    assert component_tls(config, folder) == ComponentTLS(*places, name="east")
    assert component_tls(BatonConfig(), folder) is None
