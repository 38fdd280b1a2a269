"""The reference page of the configuration, written from the models: `python -m core.config.reference`.

Owns docs/configuration.md. Without flags prints the page; `--write FILE` replaces a file; `--check FILE` exits with 1
if the file differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.config.overlay import RESERVED
from core.config.schema import KeySpec, config_schema, schema_of
from core.config.tenants import TenantsConfig

_INTRODUCTION = """\
# Configuration

<!-- Made from core/config/models.py by `python -m core.config.reference --write docs/configuration.md`. -->

One YAML file says what is served, the promise, the pools and the router. Every key has a default; `{}` is a valid
file. [deploy/slo.yaml](../deploy/slo.yaml) is the commented default, [deploy/examples](../deploy/examples) has others.

<!-- test: run -->
```sh
python baton.py validate deploy/slo.yaml          # every error at once, with file and line
python baton.py config show --effective           # every value, and where it was given
```

<!-- test: parse, the quick start starts a cluster -->
```sh
python baton.py up deploy/slo.yaml --set router.port=8001
```

## Where values come from

Later layers win:

1. the defaults below;
2. the YAML file;
3. environment variables: `BATON_ROUTER__PORT=8001` is `router.port`. Two underscores separate levels. A class or an
   engine flag that the file names already is found whatever its case, with `_` for `-` and `.`;
4. flags, in order: `--set router.port=8001`, `--set 'model.lora=[{name: a, path: adapters/a}]'`,
   `--set model.lora.0.path=adapters/b`. `--model X` is short for `--set model.path=X`.

Values of variables and flags are YAML too: `8001` is a number, `"8001"` is text, nothing is null.

These variables are not configuration: RESERVED.

## What is strict

* Unknown keys, duplicate keys and wrong types are errors. Nothing is converted: `"8001"` is no number, `yes` is no
  truth value, `1` is no text. A whole number will do where any number is wanted.
* The unit ends the key (`_ms`, `_s`, `_mb`: MiB) and never the value: `ttft_ms: 400`, not `400ms`.
* Scalars follow YAML 1.2: only `true` and `false` are truth values, `no` and `1:30` are text. Anchors and `<<` work;
  tags such as `!!python` do not.
* Keys must agree: `slo.default` is one of the classes, adapters have names of their own, both pools split the model in
  the same way (else their KV blocks could not be exchanged), one step holds at least as many tokens as requests, a
  worker has the GPUs that its parallelism needs, a policy that predicts has a profile, flags that Baton sets itself are
  not in `model.engine_args`, a certificate fits its key, `security` names all of its files. If the model's files are
  at hand, `model.max_model_len` and `kv_cache_mb` are held against them.

Relative paths start at the working directory, else at the checkout. Secrets have no key here: a key names their file.

## Pools that are planned

With `pools: auto`, `baton up` plans the pools for the devices that the Ray cluster has, prints the plan and starts what
it says; `baton status` shows it. The plan needs a profile of the model on such a device: `baton profile` measures one,
and `plan.profile` names its file. Without GPUs, a device is a worker of `plan.cpus` cores. `up` starts nothing when no
pools on these devices keep the promise, and says which promise they would keep. `baton plan` answers the same question
without a cluster. Planned pools take any node: the marks `prefill_capable` and `decode_capable` bind named pools only.

With `pools.prefill.replicas: 0` there is one pool: the decode workers run prompts too.
"""
_TENANTS = """\
## The tenants file

`router.tenants` names a YAML file of its own, for it holds who may ask and changes more often than the rest:

```yaml
tenants:
  acme:
    keys: ["9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab"]
    weight: 2
    requests_per_minute: 600
    classes: [interactive]
```

`python baton.py keys new acme` makes a key, prints it once, and prints these lines for its hash; the key itself stands
in no file. Clients send it as `Authorization: Bearer KEY`. The file is as strict as the configuration, and `validate`
reads it too.

"""


def render() -> str:
    """Write the page."""
    reserved = ", ".join(f"`{name}`" for name in sorted(RESERVED))
    parts = [_INTRODUCTION.replace("RESERVED", reserved)]
    for section in config_schema().fields:
        parts.append(f"## {section.name}\n\n{_sentence(section.description)}\n\n{_tables(section).rstrip()}\n")
    parts.append(_TENANTS + _tables(schema_of(TenantsConfig)).rstrip().replace("`.", "`") + "\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.config.reference")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="FILE", help="replace FILE by the page")
    action.add_argument("--check", type=Path, metavar="FILE", help="exit with 1 if FILE is not the page")
    options = parser.parse_args(arguments)
    page = render()
    if options.write is not None:
        options.write.write_text(page, encoding="utf-8")
    elif options.check is not None:
        if not options.check.is_file() or options.check.read_text(encoding="utf-8") != page:
            sys.stderr.write(f"{options.check} is out of date: run with --write {options.check}\n")
            return 1
    else:
        sys.stdout.write(page)
    return 0


def _tables(section: KeySpec, prefix: str = "") -> str:
    path = f"{prefix}{section.name}."
    leaves = [(path + spec.name, spec) for spec in section.fields if spec.kind != "section"]
    for spec in section.fields:
        if spec.item is not None and spec.item.kind == "section":
            inner = f"{path}{spec.name}.{spec.item.name}." if spec.kind == "map" else f"{path}{spec.name}[]."
            leaves += [(inner + field.name, field) for field in spec.item.fields]
    text = _table(leaves) if leaves else ""
    for spec in section.fields:
        if spec.kind == "section":
            text += f"### {path}{spec.name}\n\n{_sentence(spec.description)}\n\n{_tables(spec, path)}"
    return text


def _table(leaves: Sequence[tuple[str, KeySpec]]) -> str:
    rows = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for path, spec in leaves:
        default = "required" if spec.required else f"`{spec.default}`"
        cells = (f"`{path}`", spec.allowed, default, spec.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
