"""Command-line options that a YAML file can also give.

The command line wins over the file, the file over the defaults. A key of the file is one of the option's names with or
without dashes (``data-dir`` or ``data_dir``). Unknown keys, wrong types and impossible values end the script with exit code 2
and one line that names the file and the key.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option, also of those without a help text."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, argparse.SUPPRESS) or action.required:
            return action.help or ""
        return super()._get_help_string(action) or ""


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` shows every default; abbreviated options are refused, since a new one would break them."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def number(kind: type, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Callable[[str], Any]:
    """An argparse type: an ``int`` or ``float`` in [low, high], or in (low, high] with ``above``."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not (low < value if above else low <= value) or not value <= high or value != value:
            bound = f"{'above' if above else 'at least'} {low:g}" + (
                f" and at most {high:g}" if high < math.inf else ""
            )
            raise argparse.ArgumentTypeError(f"{text} is impossible: it must be {bound}")
        return value

    return convert


def parse_arguments(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    default_config: Path | None = None,
    presets: tuple[str, Path] | None = None,
    unused_keys: Sequence[str] = (),
    foreign_keys: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse the command line over the values of ``--config FILE.yml``.

    ``presets`` is the name of an option and a folder: ``FOLDER/<value of that option, or its default>.yml`` holds defaults
    under those of ``--config``.
    ``unused_keys`` are keys of the released configuration files that never did anything, or of options that are no more:
    accepted, and reported.
    ``foreign_keys`` belong to another script that reads the same file.
    """
    parser.add_argument("--config", type=Path, default=default_config, metavar="FILE", help="YAML file with options")
    found = given_values(parser, argv, *(presets or ())[:1], default_config=default_config)
    config = found["config"] and Path(found["config"])
    layers = [(config, _read(parser, config))] if config else []
    if presets:
        preset = presets[1] / f"{found.get(presets[0]) or parser.get_default(presets[0])}.yml"
        if preset.is_file() and preset != config:
            layers.insert(0, (preset, _read(parser, preset)))
    for config, values in layers:
        _set_defaults(parser, config, values, unused_keys, foreign_keys)
    return parser.parse_args(argv)


def given_values(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *names: str, default_config: Path | None = None
) -> dict[str, Any]:
    """What the command line, or else the file of ``--config``, gives for the options ``names``, as it stands there.

    For those who choose defaults by them, before ``parse_arguments``; ``config`` is the file itself, if any.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=parser.usage)
    for name in ("config", *names):
        finder.add_argument(f"--{name}")
    found = vars(finder.parse_known_args(argv)[0])
    found["config"] = found["config"] or default_config
    actions = _by_name(finder)
    for key, value in _read(parser, Path(found["config"])).items() if found["config"] else ():
        action = actions.get(str(key).replace("-", "_"))
        if action and found[action.dest] is None:
            found[action.dest] = value
    return found


def option_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The effective options as plain values, without those that are not set."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in sorted(vars(arguments).items())}
    return {key: value for key, value in values.items() if value is not None and key != "config"}


def _read(parser: argparse.ArgumentParser, config: Path) -> dict[str, Any]:
    try:
        text = config.read_text(encoding="utf-8-sig")
        # A few lines of aliases can stand for more values than any memory holds.
        alias = next((event for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)), None)
        if alias:
            where = f"line {alias.start_mark.line + 1}: *{alias.anchor}"
            parser.error(f"--config {config}: {where} stands for a value elsewhere; write the value itself")
        values = yaml.safe_load(text)
    except OSError as error:
        parser.error(f"--config {config}: {error.strerror}; give the path of a YAML file")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        parser.error(f"--config {config}: not valid YAML ({' '.join(str(error).split())})")
    if not isinstance(values, dict) and values is not None:
        parser.error(f"--config {config}: must hold 'key: value' lines, found {type(values).__name__}")
    return values or {}


def _set_defaults(
    parser: argparse.ArgumentParser,
    config: Path,
    values: dict[str, Any],
    unused_keys: Sequence[str],
    foreign_keys: Sequence[str],
) -> None:
    actions = _by_name(parser)
    unused = [key for key in values if key in unused_keys]
    if unused:
        print(f"{config}: {', '.join(unused)}: accepted, but without effect")
    for key, value in values.items():
        action = actions.get(str(key).replace("-", "_"))
        if key in unused_keys or (action is None and key in foreign_keys):
            continue
        if action is None:
            close = difflib.get_close_matches(str(key), actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(sorted(actions))}"
            parser.error(f"--config {config}: unknown key {key!r}{hint}")
        try:
            action.default = _convert(parser, action, value)
        except argparse.ArgumentError as error:
            parser.error(f"--config {config}: {key}: {error.message}")
        action.required = False


def _by_name(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options that a file may give, by each of their names as it stands there."""
    return {
        name.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for name in (action.dest, *action.option_strings)
        if action.dest not in ("help", "config") and not name.startswith("--no-")
    }


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> Any:
    """A YAML value as the command line's word would be read; PyYAML hands out ``5e-6`` as a string, for one."""
    is_switch = action.nargs == 0
    if isinstance(value, bool) and (is_switch or action.const is True):
        return value
    values = value if isinstance(value, list) and action.nargs else [value]
    if is_switch or any(part is None or isinstance(part, (bool, dict, list)) for part in values):
        what = "neither true nor false" if is_switch else "no value of this option"
        raise argparse.ArgumentError(None, f"{value!r} is {what}")
    return parser._get_values(action, list(map(str, values)))
