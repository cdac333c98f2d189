"""The page's table of fields: `python -m sidecar.translate.table` prints it, with a page's name it renews it there.

Neighbours: `fields` (the table itself), docs/translation.md. Not part of the library: only people and a test run it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from sidecar.translate.fields import Cell, cells
from sidecar.translate.provider import Provider
from sidecar.translate.providers.openai import OpenAIDialect
from sidecar.translate.registry import PROVIDERS

BEGIN = "<!-- begin: made by `python -m sidecar.translate.table docs/translation.md` -->"
END = "<!-- end -->"
_SIGNS = {"passed": "=", "mapped": "→", "refused": "✗"}


def sign(cell: Cell) -> str:
    return _SIGNS[cell.fate] + ("*" if cell.is_partial else "")


def is_open(provider: Provider) -> bool:
    """Its table is short: all is passed but what it names."""
    return provider.is_same_dialect and provider.passes_unknown


def renames_of(provider: Provider) -> Mapping[str, str]:
    return provider.renames if isinstance(provider, OpenAIDialect) else {}


def passes_all(provider: Provider) -> bool:
    """One of OpenAI's dialect that refuses nothing and renames nothing."""
    return is_open(provider) and not provider.unsupported and not renames_of(provider)


def markdown() -> str:
    rows = cells(PROVIDERS.values())
    plain = [name for name, provider in PROVIDERS.items() if passes_all(provider)]
    rest = {name: provider for name, provider in PROVIDERS.items() if name not in plain}
    shown = [name for name, provider in rest.items() if not is_open(provider)]
    lines = [
        "`=` passed as it is, `→` mapped, `✗` refused (400 `unsupported_parameter`; left out and named with",
        "`drop_params`; sent as it is with `allowed_params`), `*` some values or some models are refused, the message",
        "says which.",
        "",
        f"| field | {' | '.join(shown)} |",
        f"|---|{'---|' * len(shown)}",
    ]
    lines += [f"| `{field}` | {' | '.join(sign(rows[field][name]) for name in shown)} |" for field in rows]
    lines += [
        "",
        "The others speak OpenAI's dialect and pass every field, unknown ones too, but:",
        "",
        "| provider | refused | sent under another name |",
        "|---|---|---|",
    ]
    for name, provider in rest.items():
        if is_open(provider):
            refused = ", ".join(sorted(provider.unsupported))
            renamed = ", ".join(f"`{ours}` as `{theirs}`" for ours, theirs in sorted(renames_of(provider).items()))
            lines.append(f"| {name} | {refused} | {renamed} |")
    lines += ["", f"With no exception (but the one name of the output cap that some have): {', '.join(plain)}."]
    return "\n".join(lines)


def details(name: str) -> str:
    """One provider's table with its notes."""
    rows = cells([PROVIDERS[name]])
    return "\n".join(f"{sign(row[name]):3}{field:26}{row[name].note}" for field, row in rows.items())


def renewed(page: str) -> str:
    """The page with its table as the code has it now. Raises `ValueError` if it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.stdout.write(markdown() + "\n")
    elif arguments[0] in PROVIDERS:
        sys.stdout.write(details(arguments[0]) + "\n")
    else:
        page = Path(arguments[0])
        page.write_text(renewed(page.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
