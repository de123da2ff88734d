"""The measured tables of the repository: `python -m fastseg.bench.publish`, in a checkout, writes them anew.

From every file in bench/results come bench/RESULTS.md and the table at the head of README.md. To publish a run, put its
JSON there and call this.
"""

import sys
from pathlib import Path

from fastseg.bench import headline, results_page, schema

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, README = (ROOT / name for name in ("bench/results", "bench/RESULTS.md", "README.md"))


def read():
    """[(file, result)] in the order of their names."""
    return [(path, schema.read(path)) for path in sorted(RESULTS.glob("*.json"))]


def wanted():
    """{file: the text that it should have}."""
    results = read()
    return {PAGE: results_page.page(results), README: headline.put_in(README.read_text(), results)}


def main():
    if not RESULTS.is_dir():
        sys.exit(f"fastseg.bench.publish: no {RESULTS}: run it in a checkout")
    try:
        for path, text in wanted().items():
            path.write_text(text)
    except schema.ResultError as error:
        sys.exit(f"fastseg.bench.publish: {error}")


if __name__ == "__main__":
    main()
