"""Problems as text and as data."""

from __future__ import annotations

from core.config.problems import ConfigErrors, ConfigProblem
from core.errors import ConfigError

PORT = ConfigProblem(
    "router.port", "is out of range", "a.yaml:3", value="99999", allowed="whole number from 0 to 65535"
)
KEY = ConfigProblem("router.prot", "unknown key", "a.yaml:4", value="1", suggestion="did you mean port?")


def test_a_problem_reads_as_place_key_value_reason_remedy() -> None:
    assert str(PORT) == ("a.yaml:3: router.port = 99999: is out of range; allowed: whole number from 0 to 65535")
    assert str(KEY) == "a.yaml:4: router.prot = 1: unknown key; did you mean port?"
    assert str(ConfigProblem("", "is empty", "a.yaml")) == "a.yaml: is empty"
    assert str(ConfigProblem("slo.default", "is required", "a.yaml:1")) == "a.yaml:1: slo.default: is required"


def test_one_problem_stands_alone_and_several_are_counted() -> None:
    assert str(ConfigErrors([PORT])) == str(PORT)
    assert str(ConfigErrors([PORT, KEY])) == f"2 problems in the configuration:\n  {PORT}\n  {KEY}"


def test_config_errors_are_config_errors() -> None:
    error = ConfigErrors([PORT])
    assert isinstance(error, ConfigError)
    assert (error.name, error.problems) == ("config_error", (PORT,))
