"""Write docs/cli.md: the help page of every command, as the command line prints it."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS, cli

PAGE = Path(__file__).with_name("cli.md")


def pages() -> str:
    """Put the help pages together."""
    found: list[tuple[str, click.Command]] = [("kdcache", cli)]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found.append((f"kdcache {name}", command))
        if isinstance(command, click.Group):
            found += [(f"kdcache {name} {inner}", below) for inner, below in command.commands.items()]
    text = "# The command line\n\nWritten by `python docs/write_cli_pages.py`; a test compares it with the commands.\n"
    for name, command in found:
        context = click.Context(
            command, info_name=name, max_content_width=100, terminal_width=100, **cli.context_settings
        )
        text += f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(pages(), encoding="utf-8")
