"""What commands are told about files of weights, beside what these tell themselves."""

import ast

from fastseg.cli import CommandError
from fastseg.models.recognise import OWN
from fastseg.models.sources import ALIASES, LIBRARIES


def configure(parser):
    parser.add_argument(
        "--source",
        default="auto",
        choices=("auto", OWN, *LIBRARIES, *ALIASES),
        metavar="LIBRARY",
        help="of %(choices)s",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the network, such as align_corners=True"
    )


def keywords(arguments):
    return dict(_setting(text) for text in arguments.set)


def _setting(text):
    key, equals, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise CommandError(
            f"--set {text}: wanted KEY=VALUE with a number, True, False, None, a tuple or 'text'"
        ) from error
