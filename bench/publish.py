"""The measured tables of the repository: `python -m fastseg.bench.publish`, in a checkout, writes them anew.

bench/RESULTS.md and the table at the head of README.md come from the files in bench/results; those of
fastseg.bench.profile have names that end in _profile.json. To publish a run, put its JSON there and call this; a test
tells when it was forgotten.
"""

import json
import sys
from pathlib import Path

from fastseg.bench import headline, results_page, schema


def pages(root):
    """{file: the text it is to have} in a checkout."""
    files = sorted((root / "bench/results").glob("*.json"))
    results = [(path, schema.read(path)) for path in files if not _is_profile(path)]
    profiles = [(path, json.loads(path.read_text())) for path in files if _is_profile(path)]
    readme = root / "README.md"
    return {
        root / "bench/RESULTS.md": results_page.page(results, profiles),
        readme: headline.put_in(readme.read_text(), results),
    }


def _is_profile(path):
    return path.stem.endswith("_profile")


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
