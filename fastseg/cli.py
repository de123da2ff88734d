"""The `fastseg` command: finds a subcommand's module and runs it. Exit: 0 done, 1 a kernel was wrong, 2 bad input."""

import argparse
import importlib
import os
import sys

# name -> (module with configure(parser) and run(arguments) -> exit code, one line for --help)
COMMANDS = {
    "info": ("fastseg.info", "what is installed, and which kernel runs which op here"),
    "bench": ("fastseg.bench.command", "time every kernel and network against PyTorch on this machine"),
    "convert": ("fastseg.convert", "other libraries' weights into files that load_checkpoint reads as they are"),
    "segment": ("fastseg.segment", "label the pixels of photographs"),
}


class CommandError(Exception):
    """Something the user can put right: printed as one line, exit code 2."""


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="fastseg", description="Fast, exact, memory-lean semantic segmentation.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = None
    try:
        for name, (module, help_line) in COMMANDS.items():
            subparser = subparsers.add_parser(name, help=help_line, description=help_line)
            if name in argv[:1]:  # only what is asked for is imported
                chosen = importlib.import_module(module)
                chosen.configure(subparser)
        return chosen.run(parser.parse_args(argv)) if chosen else parser.parse_args(argv)
    except CommandError as error:
        print(f"fastseg: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("fastseg: interrupted", file=sys.stderr)
        return 130
