"""The measured tables of the repository: `python -m fastseg.bench.publish`, in a checkout, writes them anew.

bench/RESULTS.md and the table at the head of README.md come from the files in bench/results, without profiles, whose
names end in _profile.json. To publish a run, put its JSON there and call this; a test tells when it was forgotten.
"""

import sys
from pathlib import Path

from fastseg.bench import headline, results_page, schema


def pages(root):
    """{file: the text it is to have} in a checkout."""
    files = sorted((root / "bench/results").glob("*.json"))
    results = [(path, schema.read(path)) for path in files if not path.stem.endswith("_profile")]
    readme = root / "README.md"
    return {root / "bench/RESULTS.md": results_page.page(results), readme: headline.put_in(readme.read_text(), results)}


def main():
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench/results").is_dir():
        sys.exit(f"fastseg.bench.publish: {root} is no checkout: it has no bench/results")
    try:
        for path, text in pages(root).items():
            path.write_text(text)
    except schema.ResultError as error:
        sys.exit(f"fastseg.bench.publish: {error}")


if __name__ == "__main__":
    main()
