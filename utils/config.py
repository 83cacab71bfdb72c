"""Command-line options that a YAML file can also give.

The command line wins over the file, the file over the defaults. A key of the file is one of the option's names with or
without dashes (``data-dir`` or ``data_dir``). Unknown keys, wrong types and impossible values end the script with exit code 2
and one line: of the file and the key, or for a value of the option that it is given to.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
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
    found = given_values(argv, *(presets or ())[:1], default_config=default_config)
    files = [found["config"]] if found["config"] else []
    if presets:
        preset = presets[1] / f"{found[presets[0]] or parser.get_default(presets[0])}.yml"
        files = [preset, *files] if preset.is_file() and preset not in files else files
    words = [word for file in files for word in _words(parser, file, unused_keys, foreign_keys)]
    return parser.parse_args([*words, *(sys.argv[1:] if argv is None else argv)])


def given_values(argv: Sequence[str] | None, *names: str, default_config: Path | None = None) -> dict[str, Any]:
    """What the command line, or else the file of ``--config``, gives for the options ``names``, as text.

    For those who choose defaults by them, before ``parse_arguments``; ``config`` is the file itself, if any.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path, default=default_config)
    for name in names:
        finder.add_argument(f"--{name}")
    found = finder.parse_known_args(argv)[0]
    if found.config:
        words = [f"{_option(key)}={value}" for key, value in _read(finder, found.config).items()]
        found = finder.parse_known_args(argv, finder.parse_known_args(words)[0])[0]
    return vars(found)


def option_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The effective options as plain values, without those that are not set."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in sorted(vars(arguments).items())}
    return {key: value for key, value in values.items() if value is not None and key != "config"}


def _read(parser: argparse.ArgumentParser, config: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
    except OSError as error:
        parser.error(f"--config {config}: {error.strerror}; give the path of a YAML file")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        parser.error(f"--config {config}: not valid YAML ({' '.join(str(error).split())})")
    if not isinstance(values, dict) and values is not None:
        parser.error(f"--config {config}: must hold 'key: value' lines, found {type(values).__name__}")
    return values or {}


def _option(key: Any) -> str:
    return "--" + str(key).replace("_", "-")


def _words(
    parser: argparse.ArgumentParser, config: Path, unused_keys: Sequence[str], foreign_keys: Sequence[str]
) -> list[str]:
    """What the file says, as words of the command line."""
    values, words = _read(parser, config), []
    known = {name: action for name, action in parser._option_string_actions.items() if not name.startswith("--no-")}
    for name in ("-h", "--help", "--config"):
        known.pop(name, None)
    unused = [key for key in values if key in unused_keys]
    if unused:
        print(f"{config}: {', '.join(unused)}: accepted, but without effect")
    for key, value in values.items():
        option = _option(key)
        if option not in known and key not in (*unused_keys, *foreign_keys):
            keys = sorted(name.removeprefix("--").replace("-", "_") for name in known)
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(keys)}"
            parser.error(f"--config {config}: unknown key {key!r}{hint}")
        elif key in unused_keys or option not in known:
            continue
        action = known[option]
        parts = value if isinstance(value, list) and action.nargs else [value]
        if isinstance(value, bool) and action.nargs == 0:
            words += [option] if value else [name for name in action.option_strings if name.startswith("--no-")]
        elif action.nargs == 0 or not all(isinstance(part, (str, int, float)) for part in parts):
            kind = "neither true nor false" if action.nargs == 0 else "no value of this option"
            parser.error(f"--config {config}: {key}: {value!r} is {kind}")
        else:
            words += [option, *map(str, value)] if isinstance(value, list) else [f"{option}={value}"]
    return words
